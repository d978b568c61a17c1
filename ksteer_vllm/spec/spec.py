"""The steering spec: what one request asks for, validated field by field.

Pure: no vLLM, no torch. What needs an engine (is the probe loaded, is the layer open) is checked in
`ksteer_vllm.admission.registry`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field, StrictBool, ValidationError, field_validator

from ksteer_vllm.errors import SpecError
from ksteer_vllm.spec.edit import Edit, EditFields
from ksteer_vllm.spec.model import MAX_STACK, decoded, expected_object, spec_error
from ksteer_vllm.spec.where import Where

__all__ = ["EXTRA_ARGS_KEY", "SteeringSpec", "Where"]

EXTRA_ARGS_KEY = "ksteer"
"""The key of a spec in `SamplingParams.extra_args`, in an HTTP body and in `vllm_xargs`."""


class SteeringSpec(EditFields):
    """What one request asks for: either the fields of one edit, or a stack of edits, applied in order.

    Unknown fields are refused.
    """

    # One object in two spellings, and not a union of two models: where both of a union's branches refuse a
    # body, pydantic reports the branches' problems, where a client needs the one field that is wrong. What
    # follows admission sees `edits()`, in which the two are one.
    stack: Annotated[
        tuple[Edit, ...] | None,
        Field(
            min_length=1, max_length=MAX_STACK, description="Several edits, applied in order, instead of one."
        ),
    ] = None
    report: Annotated[
        StrictBool,
        Field(
            description="Return a steering report with the output: for every steered token how far x was "
            "moved, the gradient steps used, and the label probabilities before and after."
        ),
    ] = False

    @field_validator("stack", mode="before")
    @classmethod
    def _edits_alone(cls, stack: Any) -> Any:
        """A SteeringSpec in a stack is checked as the edit it must be."""
        if not isinstance(stack, (list, tuple)):
            return stack
        return [
            {name: getattr(edit, name) for name in edit.model_fields_set} if isinstance(edit, cls) else edit
            for edit in stack
        ]

    def check(self) -> None:
        """Raise SpecError unless this is one consistent edit, or a stack with no edit fields beside it."""
        if self.stack is None:
            if self.probe is None:
                raise SpecError("probe", "required")
            super().check()
            return
        for name, field in EditFields.model_fields.items():
            value = getattr(self, name)
            if value is not None and value != field.default:
                raise SpecError(name, "not allowed beside stack: set it in each edit instead", value)

    def edits(self) -> tuple[Edit, ...]:
        """The edits, whichever way they were spelt.

        Returns:
            One or more edits, in the order they are applied.
        """
        if self.stack is not None:
            return self.stack
        given = self.model_fields_set - {"stack", "report"}
        fields = {name: getattr(self, name) for name in Edit.model_fields}
        return (Edit.model_construct(_fields_set=given, **fields),)  # validated already

    def canonical(self, takes: Collection[str] | None = None) -> dict[str, Any]:
        """The spec in the one form that all its spellings have.

        Args:
            takes: The fields its method takes, where the probe's family is known; default: those it takes in
                any family.

        Returns:
            Plain JSON types that parse to an equal spec: keys sorted, unused fields left out.
        """
        if self.stack is None:
            fields = super().canonical(takes)
        else:
            fields = {"stack": [edit.canonical() for edit in self.stack]}
        return {**fields, "report": True} if self.report else fields

    @classmethod
    def parse(cls, value: Any) -> SteeringSpec:
        """A spec from what a client sent.

        Args:
            value: A SteeringSpec, a mapping, or JSON text.

        Returns:
            The spec; a SteeringSpec is returned as it is.

        Raises:
            SpecError: Naming the field, what it got and what is allowed.
        """
        if isinstance(value, cls):
            return value
        value = decoded(value)
        if not isinstance(value, Mapping):
            raise SpecError("ksteer", expected_object(value), value)
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            raise spec_error(cls, error) from None
        except RecursionError:
            raise SpecError("ksteer", "nested too deeply") from None

    def extra_args(self, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A value for vLLM's `SamplingParams(extra_args=…)`.

        Args:
            other: Further keys to pass on beside the spec.

        Returns:
            A new dict in plain JSON types, with the spec under `ksteer`.
        """
        return {**(other or {}), EXTRA_ARGS_KEY: self.model_dump(mode="json", exclude_unset=True)}
