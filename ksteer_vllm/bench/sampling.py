"""How replies are sampled, those of an experiment and those that data lacks: one set of defaults each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.bench.jobs import MAX_TOKENS

__all__ = ["MaxTokens", "ReplyPlan", "Sampling", "Temperature"]

Temperature = Annotated[float, Field(ge=0, description="Sampling temperature of the replies; 0 is greedy.")]
MaxTokens = Annotated[int, Field(ge=1, description="Maximum number of tokens per reply.")]


class Sampling(BaseModel):
    """What the plans of calibration, evaluation and layer sweep have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Temperature = 1.0
    max_tokens: MaxTokens = MAX_TOKENS


class ReplyPlan(BaseModel):
    """How the model writes replies for rows that have none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reply_temperature: Annotated[
        float,
        Field(ge=0, description="For rows without a reply: sampling temperature; 0 is greedy."),
    ] = 1.0
    reply_tokens: Annotated[
        int, Field(ge=1, description="For rows without a reply: maximum number of tokens.")
    ] = 128
    reply_batch: Annotated[
        int, Field(ge=1, description="For rows without a reply: number of replies written at once.")
    ] = 32
    replies: Annotated[
        Path | None,
        Field(
            description="File that keeps the model's replies, so that no command writes them "
            "again; default: OUT/replies.jsonl."
        ),
    ] = None
