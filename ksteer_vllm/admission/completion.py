"""What a request leaves to its probe: the method, the default edit, and the strength."""

from __future__ import annotations

from typing import Any

from ksteer_vllm.errors import SpecError, listing
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.spec.default_edit import parse_default_edit, with_defaults
from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.families import Use
from ksteer_vllm.spec.labels import MAX_MAGNITUDE
from ksteer_vllm.spec.pip_compat import as_ordinary_edit
from ksteer_vllm.spec.where import GENERATION, Where

__all__ = ["complete", "final_alpha"]


def complete(edit: Edit, probe: ProbeMetadata) -> tuple[Edit, Use]:
    """Fill in all that a request leaves out, but for the strength.

    Args:
        edit: The request's.
        probe: The probe it names.

    Returns:
        The edit with its method, layers and where-clause, and what the method takes.

    Raises:
        SpecError: If the probe lacks the method, or its default edit contradicts what the request says.
    """
    methods = probe.methods
    if edit.compat is not None:
        edit = as_ordinary_edit(edit)
    method = _method(edit, probe)
    if (
        probe.default_edit is not None
        and edit.compat is None  # a default edit was calibrated for another one
        and method == next(iter(methods))
    ):
        is_left_to_the_probe = edit.alpha is None
        edit = with_defaults(edit, parse_default_edit(probe.default_edit, probe.family, methods))
        if is_left_to_the_probe and edit.alpha is not None:
            edit = edit.model_copy(update={"alpha": _alpha_towards(edit, edit.alpha, probe)})
    use = methods[method]
    edit.check_method(method, use.takes)
    where = edit.where or (
        GENERATION if probe.default_where is None else Where.model_validate(probe.default_where)
    )
    updates: dict[str, Any] = {
        "method": method,
        "layers": edit.layers if edit.layers is not None else probe.default_layers or probe.own_layers,
        "where": where,
    }
    return edit.model_copy(update=updates), use


def final_alpha(edit: Edit, use: Use, probe: ProbeMetadata) -> float:
    """The strength that reaches the kernels: alpha, or the probe's, times `strength`.

    Args:
        edit: Complete, of a method that takes alpha.
        use: What the method takes.
        probe: The probe it names.

    Raises:
        SpecError: If nobody gives an alpha, or the product is too large.
    """
    alpha = _default_alpha(edit, use, probe) if edit.alpha is None else edit.alpha
    product = alpha * edit.strength
    if not abs(product) <= MAX_MAGNITUDE:
        raise SpecError(
            "strength",
            f"alpha * strength must be of magnitude at most {MAX_MAGNITUDE:g}, "
            f"got {alpha:g} * {edit.strength:g}",
            edit.strength,
        )
    return product + 0.0


def _alpha_towards(edit: Edit, alpha: float, probe: ProbeMetadata) -> float:
    """The default edit's alpha for the labels of a request: the mean of theirs, by their weights.

    Args:
        edit: With its labels; those to move away from count only where there are none to move towards.
        alpha: That of the default edit.
        probe: The probe it names.
    """
    labels = edit.target or edit.avoid
    whole = sum(labels.values())
    if not probe.label_alpha or not whole:
        return alpha
    return sum(weight * probe.label_alpha.get(label, alpha) for label, weight in labels.items()) / whole


def _method(edit: Edit, probe: ProbeMetadata) -> str:
    methods = probe.methods
    clamps = (name for name in methods if edit.values and "values" in methods[name].takes)
    method = edit.method or next(clamps, next(iter(methods), ""))
    if method not in methods:
        raise SpecError(
            "method",
            f"probe {edit.probe!r} ({probe.family}) has: {listing(methods)}; got {method!r}",
            method,
        )
    return method


def _default_alpha(edit: Edit, use: Use, probe: ProbeMetadata) -> float:
    """It holds for raw units in the raw metric."""
    for name in ("unit", "metric"):
        if (asked := getattr(edit, name)) != "raw":
            raise SpecError("alpha", f"required with {name} {asked!r}")
    default = probe.default_alpha.get(edit.method or "", use.default_alpha)
    if default is None:
        raise SpecError(
            "alpha", f"required: probe {edit.probe!r} has no default_alpha for method {edit.method!r}"
        )
    return default
