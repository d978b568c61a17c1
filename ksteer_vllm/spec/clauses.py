"""The parts of an edit that are objects of their own: its loss, its stopping rule and its condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    field_validator,
    model_validator,
)

from ksteer_vllm.spec.model import SpecModel

__all__ = ["Condition", "Hinge", "Loss", "Name", "Number", "Until"]

Number = StrictFloat | StrictInt
Probability = Annotated[Number, Field(gt=0, lt=1, allow_inf_nan=False)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class Hinge(SpecModel):
    """The hinge loss: each label is pushed only until it reaches a probability."""

    hinge: Annotated[
        Probability,
        Field(
            gt=0.5,
            description="The probability at which a target label stops counting; an avoid label stops at 1 "
            "minus it.",
        ),
    ]


def _kind_of_loss(value: Any) -> str | None:
    if value in ("mean", "softmin"):
        return "word"
    return "Hinge" if isinstance(value, (Mapping, Hinge)) else None


Loss = Annotated[
    Annotated[Literal["mean", "softmin"], Tag("word")] | Annotated[Hinge, Tag("Hinge")],
    Discriminator(
        _kind_of_loss,
        custom_error_type="loss",
        custom_error_message='expected mean, softmin or {"hinge": p} with p above 0.5 and below 1',
    ),
]


class Until(SpecModel):
    """When to stop before `num_steps`: once every label has reached the probability asked of its side."""

    target: Annotated[
        Probability | None, Field(description="Every target label must be at least this probable.")
    ] = None
    avoid: Annotated[
        Probability | None, Field(description="Every avoid label must be at most this probable.")
    ] = None

    @model_validator(mode="after")
    def _some(self) -> Until:
        if self.target is None and self.avoid is None:
            raise ValueError("give target, avoid or both")
        return self


class Condition(SpecModel):
    """Edit only the tokens on which a probe's label scores above, or below, a threshold (CAST, arXiv
    2409.05907).

    The score is the label's probability (families mlp and linear) or the cosine similarity of x with the
    label's vector (family vectors). Give either `above` or `below`.
    """

    probe: Annotated[Name, Field(description="The name of the loaded probe that scores the token.")]
    label: Annotated[Name, Field(description="The label of that probe whose score is compared.")]
    above: Annotated[
        Annotated[Number, Field(ge=-1, le=1, allow_inf_nan=False)] | None,
        Field(description="Edit the token if the score is above this."),
    ] = None
    below: Annotated[
        Annotated[Number, Field(ge=-1, le=1, allow_inf_nan=False)] | None,
        Field(description="Edit the token if the score is below this."),
    ] = None

    @model_validator(mode="after")
    def _one_side(self) -> Condition:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        return self

    @field_validator("above", "below")
    @classmethod
    def _one_spelling(cls, number: float | int | None) -> float | None:
        """0 and 0.0 are the same condition, with the same fingerprint."""
        return None if number is None else float(number) + 0.0
