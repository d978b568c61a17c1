"""A probe's default edit: what a request gets that leaves fields out.

A strength means something only for the edit it was calibrated for, so a probe keeps the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from ksteer_vllm.errors import SpecError, choices, first_problem, listing
from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["DEFAULT_EDIT_FIELDS", "parse_default_edit", "with_defaults"]

DEFAULT_EDIT_FIELDS = (
    "method", "metric", "unit", "loss", "num_steps", "step_decay", "layers", "where", "alpha", "until",
    "cap", "fade",
)  # fmt: skip
"""What a default edit may say: everything of an edit but its labels, and what is the request's own choice."""

_NULL_IS_LEFT_OUT = ("method", "alpha", "layers", "where")
"""Fields in which null stands for the default; in the others it says none, as in `"cap": null`."""

_SCALES = ("unit", "metric")
"""What a strength is measured in."""


def parse_default_edit(fields: Mapping[str, Any], family: str, methods: Collection[str]) -> Edit:
    """Check a default edit by the rules of a request.

    Args:
        fields: As in `probe.json`.
        family: The probe's.
        methods: Those of the family that the probe has, the default one first.

    Returns:
        An edit whose probe and labels are placeholders.

    Raises:
        ValueError: Naming the field.
    """
    if unknown := [name for name in fields if name not in DEFAULT_EDIT_FIELDS]:
        raise ValueError(
            f"{unknown[0][:80]}: not a field of a default edit; allowed: "
            f"{choices(unknown[0], DEFAULT_EDIT_FIELDS)}"
        )
    named = fields.get("method")
    method = next(iter(methods), "") if named is None else named
    if not isinstance(method, str) or method not in methods:
        raise ValueError(f"method: family {family!r} has {listing(methods)}; got {str(named)[:80]!r}")
    takes = FAMILIES[family].methods[method].takes
    labels = {side: {side: 1.0} for side in ("target", "avoid", "values") if side in takes}
    try:
        edit = Edit.model_validate({**fields, "probe": "probe", "method": method, **labels})
        edit.check_method(method, takes)
    except ValidationError as error:
        raise ValueError(str(first_problem(error)).removeprefix("ksteer.")) from None
    except SpecError as error:
        raise ValueError(str(error).removeprefix("ksteer.")) from None
    return edit


def _leaves_out(edit: Edit, name: str) -> bool:
    """Whether a request leaves a field to the probe."""
    is_null = getattr(edit, name) is None
    return name not in edit.model_fields_set or (name in _NULL_IS_LEFT_OUT and is_null)


def with_defaults(edit: Edit, default: Edit) -> Edit:
    """Fill in what a request leaves out.

    Args:
        edit: The request's.
        default: The default edit of its probe, of the same method.

    Returns:
        The whole edit.

    Raises:
        SpecError: If what was filled in contradicts what the request says; the message says where it is from.
    """
    given = default.model_fields_set
    filled = [name for name in DEFAULT_EDIT_FIELDS if name in given and _leaves_out(edit, name)]
    whole = edit.model_copy(update={name: getattr(default, name) for name in filled})
    if "alpha" in filled and default.alpha is not None:
        for name in _SCALES:
            if (asked := getattr(whole, name)) != (own := getattr(default, name)):
                raise SpecError(
                    "alpha",
                    f"required with {name} {asked!r}: the default edit of probe {edit.probe!r} measures its "
                    f"alpha with {name} {own!r}",
                )
    try:
        whole.check()
    except SpecError as error:
        origin = f"the default edit of probe {edit.probe!r} adds {listing(filled)}; give your own, or null"
        raise SpecError(error.field, f"{str(error).partition(': ')[2]} ({origin})", error.got) from None
    return whole
