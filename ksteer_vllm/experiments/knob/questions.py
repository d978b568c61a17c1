"""Questions in three parts: to fit a probe, to choose its strength, and to report on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.knob.plan import KnobPlan

__all__ = ["FEWEST", "QuestionParts"]

FEWEST: Final = 30
"""Fitting questions, at least."""


@dataclass(frozen=True)
class QuestionParts:
    """No question is in two parts."""

    fit: tuple[str, ...]
    calibration: tuple[str, ...]
    report: tuple[str, ...]

    @classmethod
    def of(cls, questions: Sequence[str], plan: KnobPlan) -> QuestionParts:
        """Draw the parts; of more questions than the plan fits to, the rest is left out.

        Raises:
            UsageError: If there are too few questions.
        """
        needed = 2 * plan.held_out + FEWEST
        if len(questions) < needed:
            raise UsageError(
                f"questions: {len(questions)}; {needed} are needed, {FEWEST} to fit to and twice "
                f"{plan.held_out} held out: give more, or hold out fewer (--held-out, at least 20)"
            )
        drawn = random.Random(plan.seed).sample(list(questions), len(questions))
        first, second = plan.held_out, 2 * plan.held_out
        return cls(
            fit=tuple(drawn[second : second + plan.fit_questions]),
            calibration=tuple(drawn[:first]),
            report=tuple(drawn[first:second]),
        )
