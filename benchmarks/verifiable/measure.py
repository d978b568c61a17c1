"""The reported figures: every way at its chosen setting, on questions that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.progress import Progress

from benchmarks.verifiable.behaviours import BEHAVIOURS, PAIRS
from benchmarks.verifiable.jobs import Targets, plain_jobs, prompted_jobs, read_for, steered_jobs
from benchmarks.verifiable.questions import reporting
from benchmarks.verifiable.seen import Seen
from benchmarks.verifiable.share import WHOLE, Share
from benchmarks.verifiable.ways import WAYS, Setting
from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.journal import Journal

__all__ = [
    "PAIR_QUESTIONS",
    "PROMPTED",
    "SINGLE_QUESTIONS",
    "UNSTEERED",
    "Chosen",
    "measure_pairs",
    "measure_singles",
]

SINGLE_QUESTIONS = 40
PAIR_QUESTIONS = 8
UNSTEERED, PROMPTED = "unsteered", "prompted"
SINGLES: Targets = tuple((name,) for name in BEHAVIOURS)


@dataclass(frozen=True)
class Chosen:
    """The settings that were chosen, by the way's name.

    Attributes:
        alone: For steering under the plain question.
        prompted: For steering with the instructions in the prompt.
    """

    alone: Mapping[str, Setting]
    prompted: Mapping[str, Setting]


def measure_singles(
    bench: Bench, journal: Journal, chosen: Chosen, progress: Progress | None = None, share: Share = WHOLE
) -> dict[str, Seen]:
    """The rows of the table of single behaviours, by name; of a process's share only."""
    return _measure(bench, journal, chosen, SINGLES, reporting()[:SINGLE_QUESTIONS], progress, share)


def measure_pairs(
    bench: Bench, journal: Journal, chosen: Chosen, progress: Progress | None = None, share: Share = WHOLE
) -> dict[str, Seen]:
    """The rows of the table of pairs, by name: both behaviours must show in one reply."""
    return _measure(bench, journal, chosen, PAIRS, reporting()[:PAIR_QUESTIONS], progress, share)


def _measure(
    bench: Bench,
    journal: Journal,
    chosen: Chosen,
    targets: Targets,
    questions: Sequence[str],
    progress: Progress | None,
    share: Share,
) -> dict[str, Seen]:
    rows = {}
    for name, jobs in share.of(_rows(chosen, targets, questions)).items():
        replies = bench.run(jobs, journal=journal, progress=progress, description=name)
        rows[name] = Seen(read_for(replies, targets) if name == UNSTEERED else replies, questions)
    return rows


def _rows(chosen: Chosen, targets: Targets, questions: Sequence[str]) -> dict[str, list[Job]]:
    """What is asked for each row of a table. Unsteered replies are written once, and read for all targets."""
    return {
        UNSTEERED: plain_jobs(questions),
        PROMPTED: prompted_jobs(targets, questions),
        **{
            f"{PROMPTED} + {name}": steered_jobs(WAYS[name], setting, targets, questions, prompted=True)
            for name, setting in chosen.prompted.items()
        },
        **{
            name: steered_jobs(WAYS[name], setting, targets, questions)
            for name, setting in chosen.alone.items()
        },
    }
