"""One edit: one probe, one method, what to move towards and away from, where and how far."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    field_validator,
    model_validator,
)

from ksteer_vllm.errors import SpecError, listing
from ksteer_vllm.spec.compat import CompatClause
from ksteer_vllm.spec.families import METHODS, fields_of
from ksteer_vllm.spec.labels import FeatureValues, LabelWeights, finite_float
from ksteer_vllm.spec.where import WhereClause

__all__ = ["Condition", "Edit", "EditFields", "Hinge", "Until"]

MAX_LAYERS = 1024

Number = StrictFloat | StrictInt
Probability = Annotated[Number, Field(gt=0, lt=1, allow_inf_nan=False)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hinge(_Model):
    """The hinge loss: targets count until this probability, avoids until 1 minus it."""

    hinge: Annotated[Probability, Field(gt=0.5)]


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


class Until(_Model):
    """Step until every target's probability is at least `target` and every avoid's at most `avoid`."""

    target: Probability | None = None
    avoid: Probability | None = None

    @model_validator(mode="after")
    def _some(self) -> Until:
        if self.target is None and self.avoid is None:
            raise ValueError("give target, avoid or both")
        return self


class Condition(_Model):
    """Edit a token only where a label says so (CAST, arXiv 2409.05907): the label's probability under a probe
    (families mlp and linear), or the cosine with its vector (family vectors), is above or below a number."""

    probe: Name
    label: Name
    above: Annotated[Number, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    below: Annotated[Number, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None

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


class EditFields(_Model):
    """What can be said of one edit, in an `Edit` and in a spec that holds one edit alone."""

    probe: Annotated[Name | None, Field(description="name of a loaded probe")] = None
    method: Annotated[
        Literal[METHODS] | None,  # type: ignore[valid-type]  # the registry's names, not written out here
        Field(description="default: the first of the probe's family that takes what is given"),
    ] = None
    target: Annotated[LabelWeights, Field(description="labels to move towards")] = {}
    avoid: Annotated[LabelWeights, Field(description="labels to move away from")] = {}
    values: Annotated[FeatureValues, Field(description="clamp: feature -> activation")] = {}
    alpha: Annotated[
        Number | None, Field(description="strength; 0 a no-op but for ace; default: the probe's")
    ] = None
    num_steps: Annotated[StrictInt, Field(ge=1, description="gradient steps per token and layer")] = 8
    step_decay: Annotated[
        Number, Field(ge=0, le=1, allow_inf_nan=False, description="step t uses alpha * step_decay^t")
    ] = 1.0
    loss: Loss = "mean"
    until: Until | None = None
    unit: Annotated[
        Literal["raw", "normalised"],
        Field(description="of alpha: as it is, or the layer's mean |x - mean(x)| per step"),
    ] = "raw"
    cap: Annotated[
        Number | None, Field(gt=0, le=1e6, allow_inf_nan=False, description="at most cap * |x| is moved")
    ] = None
    preserve_norm: Annotated[StrictBool, Field(description="scale x' to |x|")] = False
    fade: Annotated[
        StrictInt | None,
        Field(ge=1, le=2**40, description="generated tokens over which the strength falls linearly to 0"),
    ] = None
    layers: Annotated[
        tuple[Annotated[StrictInt, Field(ge=0)], ...] | None,
        Field(description="0-based decoder blocks; default: the probe's own"),
    ] = None
    where: WhereClause | None = None
    condition: Condition | None = None
    compat: Annotated[
        CompatClause | None,
        Field(description="do as another package does, quirks included: pip-0.1.2 is k-steering 0.1.2"),
    ] = None

    @field_validator("alpha")
    @classmethod
    def _finite(cls, alpha: float | int | None) -> float | None:
        return None if alpha is None else finite_float(alpha)

    @field_validator("step_decay", "cap")
    @classmethod
    def _one_spelling(cls, number: float | int | None) -> float | None:
        """1 and 1.0 are the same spec, with the same fingerprint."""
        return None if number is None else float(number) + 0.0

    @field_validator("layers")
    @classmethod
    def _distinct_layers(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is None:
            return None
        if not layers:
            raise ValueError("empty list; leave the field out for the probe's own layers")
        if len(layers) > MAX_LAYERS:
            raise ValueError(f"at most {MAX_LAYERS} layers, got {len(layers)}")
        if len(set(layers)) != len(layers):
            raise ValueError("a layer is named twice")
        return tuple(sorted(layers))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Raise SpecError on fields that contradict each other or that the method does not use."""
        both = sorted(set(self.target) & set(self.avoid))
        if both:
            raise SpecError("target", f"label on both sides, target and avoid: {listing(both)}", both)
        if self.cap is not None and self.preserve_norm:
            raise SpecError("preserve_norm", "not together with cap: keeping the norm moves x again", True)
        if self.method is not None:
            self.check_method(self.method, fields_of(self.method))
        elif not (self.target or self.avoid or self.values):
            raise SpecError("target", "target and avoid are both empty: name at least one label", {})
        for side in ("target", "avoid"):
            if self.until is not None and getattr(self.until, side) is not None and not getattr(self, side):
                raise SpecError(f"until.{side}", f"there is no {side} label", getattr(self.until, side))
        if self.loss == "softmin" and not self.target:
            raise SpecError("loss", "'softmin' needs a target label", self.loss)

    def check_method(self, method: str, takes: Collection[str]) -> None:
        """Raise SpecError on a field the method does not take, or labels it needs."""
        for name in METHOD_FIELDS:
            if name in takes or name not in self.model_fields_set:
                continue
            if getattr(self, name) != type(self).model_fields[name].default:
                sides = listing(side for side in ("target", "avoid", "values") if side in takes)
                message = f"not used by method {method!r}, which takes {sides} only"
                if name not in ("target", "avoid", "values"):
                    message = f"not used by method {method!r}"
                raise SpecError(name, message, getattr(self, name))
        own = [side for side in ("target", "avoid", "values") if side in takes]
        if not any(getattr(self, side) for side in own):
            if len(own) == 1:
                raise SpecError(own[0], f"method {method!r} needs at least one label in {own[0]}", {})
            raise SpecError("target", "target and avoid are both empty: name at least one label", {})

    def canonical(self, takes: Collection[str] | None = None) -> dict[str, Any]:
        """The edit as plain JSON types: keys sorted; fields that are unused or change nothing left out."""
        fields = self.model_dump(mode="json", exclude_none=True, include=set(EditFields.model_fields))
        if takes is None:
            takes = fields_of(self.method) if self.method else METHOD_FIELDS
        unused = {name for name in METHOD_FIELDS if name not in takes}
        unused |= {
            name
            for name in ("target", "avoid", "values", "loss", "unit", "preserve_norm")
            if fields.get(name) == EditFields.model_fields[name].default
        }
        fields = {name: value for name, value in sorted(fields.items()) if name not in unused}
        if self.where is not None:
            fields["where"] = self.where.canonical()
        for side in ("target", "avoid", "values"):
            if side in fields:
                fields[side] = dict(sorted(fields[side].items()))
        return fields


class Edit(EditFields):
    """One edit of a request. Unknown fields are refused, and so are fields the method does not use.

    x is one token's residual-stream vector at one layer. `gradient` steps along -grad L, with the loss
    L(x) = sum_avoid w_k f_k(x) - sum_target w_k f_k(x) over the probe's logits f (arXiv 2505.24535), or
    another.
    """

    probe: Annotated[Name, Field(description="name of a loaded probe")]


METHOD_FIELDS = (
    "target", "avoid", "values", "alpha", "num_steps", "step_decay", "loss", "until", "unit",
)  # fmt: skip
"""Fields that some methods take and others do not."""
