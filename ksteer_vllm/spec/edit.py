"""One edit: one probe, one method, what to move towards and away from, where and how far."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, field_validator, model_validator

from ksteer_vllm.errors import SpecError, listing
from ksteer_vllm.spec.clauses import Condition, Loss, Name, Number, Until
from ksteer_vllm.spec.compat import CompatClause
from ksteer_vllm.spec.families import METHODS, fields_of
from ksteer_vllm.spec.labels import FeatureValues, LabelWeights, finite_float
from ksteer_vllm.spec.model import SpecModel
from ksteer_vllm.spec.where import WhereClause

__all__ = ["Edit", "EditFields"]

MAX_LAYERS = 1024


class EditFields(SpecModel):
    """The fields of one edit: shared by `Edit` and by a spec that is a single edit."""

    probe: Annotated[Name | None, Field(description="The name of a loaded probe.")] = None
    method: Annotated[
        Literal[METHODS] | None,  # type: ignore[valid-type]  # the registry's names, not written out here
        Field(
            description="How the probe moves x. Default: the first method of the probe's family, or the "
            "first that takes values if values are given."
        ),
    ] = None
    target: Annotated[LabelWeights, Field(description="The labels to move towards.")] = {}  # noqa: RUF012
    avoid: Annotated[LabelWeights, Field(description="The labels to move away from.")] = {}  # noqa: RUF012
    values: Annotated[
        FeatureValues, Field(description="For method clamp: the activation to set each feature to.")
    ] = {}  # noqa: RUF012
    alpha: Annotated[
        Number | None,
        Field(
            description="The strength. 0 leaves x unchanged, except for method ace. Default: the probe's "
            "calibrated one for this method."
        ),
    ] = None
    strength: Annotated[
        Number,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="A factor on alpha, given or calibrated: 0.5 is half of it. The weights of labels "
            "are ratios; this is the knob.",
        ),
    ] = 1.0
    num_steps: Annotated[StrictInt, Field(ge=1, description="The gradient steps per token and layer.")] = 8
    step_decay: Annotated[
        Number,
        Field(
            ge=0, le=1, allow_inf_nan=False, description="Step t, counted from 0, uses alpha * step_decay^t."
        ),
    ] = 1.0
    loss: Annotated[
        Loss,
        Field(
            description="What the gradient steps descend: the weighted mean of the logits, softmin (the "
            "weakest target first), or a hinge on each label's probability."
        ),
    ] = "mean"
    until: Annotated[
        Until | None,
        Field(
            description="Stop before num_steps once the labels have reached these probabilities. Default: "
            "take every step."
        ),
    ] = None
    unit: Annotated[
        Literal["raw", "normalised"],
        Field(
            description="What alpha is measured in: raw takes it as given; normalised measures the length of "
            "a step in the layer's mean |x - mean(x)|, both lengths in the metric if there is one."
        ),
    ] = "raw"
    metric: Annotated[
        Literal["raw", "variance", "covariance"],
        Field(
            description="In which metric of x a gradient step is the steepest. raw: the Euclidean one. "
            "variance, covariance: the gradient is multiplied by that of the probe's activations, coordinate "
            "by coordinate or as a matrix."
        ),
    ] = "raw"
    cap: Annotated[
        Number | None,
        Field(gt=0, le=1e6, allow_inf_nan=False, description="Move x by at most cap * |x|. Default: no cap."),
    ] = None
    preserve_norm: Annotated[StrictBool, Field(description="Scale the edited x' to the norm of x.")] = False
    fade: Annotated[
        StrictInt | None,
        Field(
            ge=1,
            le=2**40,
            description="The number of generated tokens over which the strength falls linearly to 0. "
            "Default: no fade.",
        ),
    ] = None
    layers: Annotated[
        tuple[Annotated[StrictInt, Field(ge=0)], ...] | None,
        Field(description="The layers to edit at, as 0-based decoder blocks. Default: the probe's own."),
    ] = None
    where: Annotated[
        WhereClause | None,
        Field(
            description="Which tokens to edit: prompt, generation, both, or windows. Default: the probe's "
            "own, or else generation."
        ),
    ] = None
    condition: Annotated[
        Condition | None,
        Field(description="Edit only the tokens that meet this condition. Default: every token in where."),
    ] = None
    compat: Annotated[
        CompatClause | None,
        Field(
            description="Reproduce another package's behaviour, quirks included: pip-0.1.2 is k-steering "
            "0.1.2."
        ),
    ] = None

    @field_validator("alpha")
    @classmethod
    def _finite(cls, alpha: float | int | None) -> float | None:
        return None if alpha is None else finite_float(alpha)

    @field_validator("strength", "step_decay", "cap")
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
            raise SpecError(
                "preserve_norm", "cannot be combined with cap: restoring the norm moves x again", True
            )
        if self.metric != "raw" and self.preserve_norm:
            raise SpecError(
                "preserve_norm",
                f"cannot be combined with metric {self.metric!r}: it restores the Euclidean length",
                True,
            )
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
        """Check the fields against a method.

        Args:
            method: Its name, for messages.
            takes: The optional fields that it takes.

        Raises:
            SpecError: On a field the method does not take, or if a label it needs is missing.
        """
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
        """The edit as plain JSON types, the same for specs that mean the same.

        Args:
            takes: The optional fields that the method takes; None: those of `method`, or all without one.

        Returns:
            Keys sorted; fields that are unused or change nothing left out.
        """
        fields = self.model_dump(mode="json", exclude_none=True, include=set(EditFields.model_fields))
        if takes is None:
            takes = fields_of(self.method) if self.method else METHOD_FIELDS
        unused = {name for name in METHOD_FIELDS if name not in takes}
        unused |= {
            name
            for name in ("target", "avoid", "values", "strength", "loss", "unit", "metric", "preserve_norm")
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
    another loss.
    """

    probe: Annotated[Name, Field(description="The name of a loaded probe.")]


METHOD_FIELDS = (
    "target", "avoid", "values", "alpha", "strength", "num_steps", "step_decay", "loss", "until", "unit",
    "metric",
)  # fmt: skip
"""Fields that some methods take and others do not."""
