"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.experiments.evaluation.matching import TOLERANCE
from ksteer_vllm.experiments.evaluation.metrics import UNSTEERED
from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan
from ksteer_vllm.experiments.evaluation.settings import Setting

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STEPS_OF", "Evaluation", "Matched"]

STEPS_OF = "K-Steering, 8 steps"
"""The variant whose number of steps is varied."""


@dataclass(frozen=True)
class Matched:
    """The strength that comes closest to the common displacement of a size. reached: within the tolerance."""

    variant: str
    size: int
    alpha: float
    shift: float
    wanted: float

    @property
    def reached(self) -> bool:
        return abs(self.shift - self.wanted) <= TOLERANCE * self.wanted


@dataclass
class Evaluation:
    """Everything the write-up is made from.

    Attributes:
        own: A row per reply at each variant's own calibrated strength, see `metrics.towards`.
        matched: The same at equal displacement.
        steps: The same by number of gradient steps.
        moved: Displacement and KL at own strengths.
        strengths, step_strengths: The strengths of `matched` and of `steps`.
        propensities: Columns variant, target, prompt, multiplier, propensity.
        points: Replies on two principal components.
        without: Variants that could not run at a size, in words.
    """

    plan: EvaluationPlan
    settings: list[Setting]
    targets: list[tuple[str, ...]]
    judge: str
    rule: CoherenceRule
    exact_kl: bool
    own: pd.DataFrame
    matched: pd.DataFrame
    steps: pd.DataFrame | None
    moved: pd.DataFrame
    strengths: list[Matched]
    step_strengths: list[Matched]
    propensities: pd.DataFrame
    points: pd.DataFrame | None
    samples: list[Reply]
    without: list[str] = field(default_factory=list)
    not_judged: int = 0
    source: dict[str, Any] = field(default_factory=dict)

    def unsteered_coherent(self) -> float:
        """Share of the unsteered replies that are coherent, by judge and rule."""
        plain = self.own[self.own["variant"] == UNSTEERED]
        return float(plain.drop_duplicates("prompt")["coherent"].mean())

    def reached(self) -> pd.DataFrame:
        """The replies at equal displacement of the variants that reached it, and the unsteered ones."""
        there = {(m.variant, m.size) for m in self.strengths if m.reached}
        rows = self.matched
        keep = [
            variant == UNSTEERED or (variant, size) in there
            for variant, size in zip(rows["variant"], rows["size"], strict=True)
        ]
        return rows[keep]
