"""The spec field `compat`: which package's behaviour an edit repeats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

__all__ = ["PIP_0_1_2", "Compat", "CompatClause"]

PIP_0_1_2: Literal["pip-0.1.2"] = "pip-0.1.2"


class Compat(BaseModel):
    """padded_length: tokens of the longest prompt of the batch the package would have padded to; default: the
    request's own prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal["pip-0.1.2"]
    padded_length: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None


def _from_word(value: Any) -> Any:
    return {"version": value} if isinstance(value, str) else value


CompatClause = Annotated[Compat, BeforeValidator(_from_word)]
