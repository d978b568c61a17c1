"""What an evaluation is made of. Imports no torch: the command line is made from it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ksteer_vllm.bench.combinations import Avoid
from ksteer_vllm.bench.judges import AllowChanceJudge
from ksteer_vllm.bench.sampling import Sampling
from ksteer_vllm.experiments.calibration.plan import Rule

__all__ = ["EvaluationPlan"]

Count = Annotated[int, Field(ge=1)]


class EvaluationPlan(Sampling):
    """What to evaluate. Sizes, avoid, temperature and max_tokens default to those of the calibration."""

    sizes: Annotated[
        tuple[Count, ...],
        Field(
            min_length=1,
            description="Numbers of labels to steer towards at once; default: as calibrated.",
        ),
    ] = (1, 2, 3)
    prompts: Annotated[int, Field(ge=1, description="Number of the suite's evaluation prompts to use.")] = 20
    variants: Annotated[
        tuple[str, ...],
        Field(
            description="A variant to evaluate, or a probe of the suite, to evaluate all its variants; may "
            "be repeated; default: all."
        ),
    ] = ()
    judge: str | None = None
    judge_options: dict[str, Any] = Field(default_factory=dict)
    allow_chance_judge: AllowChanceJudge = False
    avoid: Annotated[
        Avoid,
        Field(
            description="Labels to steer away from: rest (all but the targets) or none; default: as "
            "calibrated."
        ),
    ] = "rest"
    strength: Annotated[Rule, Field(description="Which of the calibrated strengths to use.")] = "best"
    steps: Annotated[
        tuple[Count, ...], Field(description="Numbers of gradient steps at which to compare K-Steering.")
    ] = (1, 2, 4, 8, 16)
    texts: Annotated[
        int, Field(ge=1, description="Number of unsteered replies on which displacement and KL are measured.")
    ] = 3
