"""What an evaluation is made of. Pure: the command line is made from it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ksteer_vllm.bench.combinations import Avoid
from ksteer_vllm.bench.sampling import Sampling
from ksteer_vllm.experiments.calibration.plan import Rule

__all__ = ["EvaluationPlan"]

Count = Annotated[int, Field(ge=1)]


class EvaluationPlan(Sampling):
    """What is left open is taken from the suite's calibration: sizes, avoid, temperature, max_tokens."""

    sizes: Annotated[
        tuple[Count, ...],
        Field(
            min_length=1,
            description="How many labels a request steers towards at once; default: as calibrated.",
        ),
    ] = (1, 2, 3)
    prompts: Annotated[int, Field(ge=1, description="How many of the suite's evaluation prompts to use.")] = (
        20
    )
    variants: Annotated[
        tuple[str, ...],
        Field(
            description="A variant to evaluate, or a probe of the suite, all of whose variants are "
            "evaluated; may be repeated; default: all."
        ),
    ] = ()
    judge: str | None = None
    judge_options: dict[str, Any] = Field(default_factory=dict)
    avoid: Annotated[
        Avoid,
        Field(description="Whether to steer away from all other labels; default: as calibrated."),
    ] = "rest"
    strength: Annotated[Rule, Field(description="Which of the calibrated strengths to use.")] = "best"
    steps: Annotated[
        tuple[Count, ...], Field(description="Numbers of gradient steps to compare K-Steering at.")
    ] = (1, 2, 4, 8, 16)
    texts: Annotated[
        int, Field(ge=1, description="Unsteered replies that displacement and KL are measured on.")
    ] = 3
