"""What an evaluation is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.bench.combinations import Avoid

__all__ = ["EvaluationPlan"]

Count = Annotated[int, Field(ge=1)]


class EvaluationPlan(BaseModel):
    """What is left open is taken from the suite's calibration: sizes, avoid, temperature, max_tokens.

    sizes: of label combinations. prompts: of the suite's evaluation prompts, the first so many. variants:
    names, default all. judge: default the suite's. avoid: the labels not asked for, or none. strength: which
    calibrated strength. steps: of the step-count curve. texts: unsteered replies that displacement and KL
    are measured on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 3)
    prompts: Count = 20
    variants: tuple[str, ...] = ()
    judge: str | None = None
    judge_options: dict[str, Any] = {}
    avoid: Avoid = "rest"
    strength: Literal["best", "largest_coherent"] = "best"
    steps: tuple[Count, ...] = (1, 2, 4, 8, 16)
    texts: Count = 3
    temperature: Annotated[float, Field(ge=0)] = 1.0
    max_tokens: Count = 96
