"""What an evaluation is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.evaluate.combinations import Avoid

__all__ = ["EvaluationPlan"]

Count = Annotated[int, Field(ge=1)]


class EvaluationPlan(BaseModel):
    """sizes: of label combinations. prompts: of the suite's evaluation prompts, the first so many. variants:
    names, default all. judge: default the suite's. avoid: the labels not asked for, or none. strength: which
    calibrated strength. steps: of the step-count curve. texts: unsteered replies that displacement and KL
    are measured on. budget: of the coherence rule.
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
    budget: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Annotated[float, Field(ge=0)] = 1.0
    max_tokens: Count = 96
