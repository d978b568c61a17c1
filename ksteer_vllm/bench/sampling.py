"""How the replies of an experiment are sampled: one set of defaults for every plan."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.bench.jobs import MAX_TOKENS

__all__ = ["Sampling"]


class Sampling(BaseModel):
    """What the plans of calibration, evaluation and layer sweep have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[
        float, Field(ge=0, description="Sampling temperature of the replies; 0 is greedy.")
    ] = 1.0
    max_tokens: Annotated[int, Field(ge=1, description="Maximum number of tokens per reply.")] = MAX_TOKENS
