"""One setting for every way, by one rule, on the half of the questions that nothing is reported on.

The rule: of the settings with at most MAX_BROKEN broken replies, the one whose replies show their behaviour
most often, averaged over all behaviours; where none stays below, the one that breaks fewest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.progress import Progress

from benchmarks.verifiable.behaviours import BEHAVIOURS
from benchmarks.verifiable.jobs import steered_jobs
from benchmarks.verifiable.questions import choosing
from benchmarks.verifiable.seen import Seen
from benchmarks.verifiable.ways import WAYS, Setting, Way
from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.journal import Journal

__all__ = ["MAX_BROKEN", "QUESTIONS", "Tried", "best", "try_all"]

MAX_BROKEN = 0.05
QUESTIONS = 6
"""Asked of each setting, for every behaviour."""


@dataclass(frozen=True)
class Tried:
    """What one setting did: shares of the replies, and their mean negative log-likelihood in nats."""

    setting: Setting
    share: float
    broken: float
    nll: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def best(tried: Sequence[Tried]) -> Tried:
    """The setting the rule takes; of equals the weaker one."""
    whole = [found for found in tried if found.broken <= MAX_BROKEN]
    if not whole:
        return min(tried, key=lambda found: (found.broken, -found.share))
    return max(whole, key=lambda found: (found.share, -found.setting.strength))


def try_all(
    bench: Bench,
    journal: Journal,
    progress: Progress | None = None,
    *,
    ways: Mapping[str, Way] = WAYS,
    prompted: bool = False,
) -> dict[str, list[Tried]]:
    """Every setting of every way on QUESTIONS questions of the choosing half.

    Args:
        bench: An engine with all probes.
        journal: Keeps the replies.
        progress: Where to show how many are done.
        ways: By name.
        prompted: Whether the instructions are in the prompt as well.

    Returns:
        By the way's name, in the order of its settings.
    """
    questions = choosing()[:QUESTIONS]
    targets = [(name,) for name in BEHAVIOURS]
    found: dict[str, list[Tried]] = {}
    for name, way in ways.items():
        settings = way.settings
        per_setting = len(targets) * len(questions)
        jobs = [
            job
            for setting in settings
            for job in steered_jobs(way, setting, targets, questions, prompted=prompted)
        ]
        replies = bench.run(jobs, journal=journal, progress=progress, description=f"choosing: {name}")
        found[name] = []
        for number, setting in enumerate(settings):
            seen = Seen(replies[number * per_setting : (number + 1) * per_setting], questions)
            found[name].append(Tried(setting, seen.share, seen.broken_share, seen.nll))
    return found
