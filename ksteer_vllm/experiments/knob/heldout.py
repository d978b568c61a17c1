"""From the fitted probe to a strength, and to figures on questions that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.ordinary import labelled_replies, perplexities
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.experiments.knob.checks import Check
from ksteer_vllm.experiments.knob.figures import BehaviourFigures, figures_of
from ksteer_vllm.experiments.knob.plan import KnobPlan
from ksteer_vllm.experiments.knob.prompts import Form
from ksteer_vllm.experiments.knob.questions import QuestionParts
from ksteer_vllm.experiments.knob.strength import StrengthPoint, chosen, point_of
from ksteer_vllm.experiments.knob.tryout import KNOB, ReadingLimit, ReadReply, Row, Tryout, perplexity

__all__ = ["Findings", "try_out"]


@dataclass(frozen=True)
class Findings:
    """What was found on held-out questions.

    Attributes:
        limit: What counted as readable.
        points: Every strength that was tried, ascending.
        chosen: Behaviour -> the strength that was taken for it; without those that every strength breaks.
        outcomes: Row -> outcomes on the questions to report on; empty if no strength was taken.
        figures: Behaviour -> figures on them.
    """

    limit: ReadingLimit
    points: tuple[StrengthPoint, ...]
    chosen: Mapping[str, float]
    outcomes: Mapping[Row, list[ReadReply]]
    figures: Mapping[str, BehaviourFigures]

    @property
    def steering(self) -> list[str]:
        """The behaviours whose gain is above 0 with its whole interval."""
        return [name for name, found in self.figures.items() if found.gain.steers]


def try_out(
    model: str,
    probe: Path,
    form: Form,
    rows: Sequence[LabelledRow],
    instructions: Mapping[str, Sequence[str]],
    checks: Mapping[str, Check],
    parts: QuestionParts,
    plan: KnobPlan,
    folder: Path,
    *,
    engine_options: Mapping[str, Any],
    progress: Progress,
) -> Findings:
    """Choose a strength on the calibration questions and report on the others, in one engine.

    Args:
        model: A folder, or a name on the hub.
        probe: The uncalibrated probe's folder.
        form: The form of the prompts.
        rows: What the probe was fitted to: ordinary replies, which set the reading limit.
        instructions: Behaviour -> the phrasings that ask for it; empty where nobody wrote any.
        checks: Of every label of the probe.
        parts: The questions.
        plan: Strengths and limits.
        folder: Where replies are kept.
        engine_options: Further arguments of `vllm.LLM`.
        progress: Where progress is shown.
    """
    with (
        Bench(
            model,
            {KNOB: probe},
            engine_options=engine_options,
            temperature=plan.reply_temperature,
            max_tokens=plan.reply_tokens,
        ) as bench,
        Journal(folder / "journal.jsonl", bench.identity) as journal,
    ):
        tryout = Tryout(bench, form, instructions, checks, plan, journal, progress)
        plain = [perplexity(one.reply) for one in tryout.run("unsteered", parts.calibration)]
        labelled = perplexities(bench, labelled_replies(rows, list(checks)), journal=journal)
        tryout.limit = ReadingLimit.of(plain, labelled)
        points = tuple(
            point_of(strength, tryout.run("steered", parts.calibration, dict.fromkeys(checks, strength)))
            for strength in sorted(plan.strengths)
        )
        best = chosen(points, plan.max_broken)
        if not best:
            return Findings(tryout.limit, points, best, {}, {})
        outcomes = {row: tryout.run(row, parts.report, best) for row in tryout.rows}
    return Findings(tryout.limit, points, best, outcomes, figures_of(outcomes, list(best)))
