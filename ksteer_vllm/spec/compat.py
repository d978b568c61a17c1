"""The spec field `compat`: which package's behaviour an edit reproduces."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictInt

from ksteer_vllm.spec.model import SpecModel

__all__ = ["PIP_0_1_2", "Compat", "CompatClause"]

PIP_0_1_2: Literal["pip-0.1.2"] = "pip-0.1.2"


class Compat(SpecModel):
    """Which package's behaviour an edit reproduces. The version's name alone, as text, says the same."""

    version: Annotated[
        Literal["pip-0.1.2"], Field(description="The package and its version: k-steering 0.1.2.")
    ]
    padded_length: Annotated[
        Annotated[StrictInt, Field(ge=1, le=2**31)] | None,
        Field(
            description="The prompt length, in tokens, to which the package would have padded the batch. "
            "Default: the length of this request's prompt."
        ),
    ] = None


def _from_word(value: Any) -> Any:
    return {"version": value} if isinstance(value, str) else value


CompatClause = Annotated[Compat, BeforeValidator(_from_word)]
