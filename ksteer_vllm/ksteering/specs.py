"""From labels and strengths, as k-steering has them, to a request's spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.errors import SpecError, UsageError, choices, listing
from ksteer_vllm.ksteering.config import SteeringConfig
from ksteer_vllm.ksteering.engine import PROBE
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.spec.families import FAMILIES
from ksteer_vllm.spec.spec import SteeringSpec

__all__ = ["LENGTH", "Labels", "labels_of_each", "spec_of"]

Labels = Sequence[str] | Sequence[Sequence[str]] | None
"""One list of labels for every prompt, or a list for each."""

LENGTH = 0.5
"""Strength if none is given: all steps together move x by this many times the layer's mean |x - mean(x)|."""


def spec_of(
    metadata: ProbeMetadata,
    config: SteeringConfig,
    compat: str | None,
    target: Sequence[str],
    avoid: Sequence[str],
    *,
    steering_strength: float | None = None,
    layers: Sequence[int] | None = None,
    layer_strengths: Mapping[int, float] | None = None,
    padded_length: int | None = None,
    **edit: Any,
) -> dict[str, Any]:
    """A request's spec in plain JSON types; with different strengths at some layers, a stack of an edit each.

    Args:
        metadata: The probe's.
        config: What holds where the other arguments say nothing.
        compat: Version of the package to repeat, or None.
        target, avoid: Labels to move towards and away from.
        steering_strength, layers, layer_strengths: Before those of the configuration.
        padded_length: With compat, the length in tokens the package would pad the prompt to.
        edit: Further fields of the spec.

    Raises:
        SpecError: For unknown labels, strengths of layers that are not steered, and fields that do not go
            together.
    """
    _check_labels(metadata, target, avoid)
    fields: dict[str, Any] = {
        "probe": PROBE,
        "target": list(target),
        "avoid": list(avoid),
        "method": "gradient",
    }
    if compat is not None:
        fields["compat"] = {"version": compat, "padded_length": padded_length}
        steering_strength = steering_strength or None  # the package reads 0 as "not given"
    fields |= edit
    takes_alpha = _takes_alpha(metadata, edit)
    strengths = layer_strengths or (config.layer_strengths if takes_alpha else {})
    own = layers or config.steer_layers
    steered = own or metadata.steered_layers
    if outside := sorted(set(strengths) - set(steered)):
        raise SpecError(
            "layer_strengths",
            f"layer {listing(outside)} is not steered; steered: {listing(steered, 200)}",
            outside,
        )
    if steering_strength is None and takes_alpha:
        steering_strength = config.steering_strength
    at: dict[int, dict[str, Any]] = {layer: {} for layer in steered}
    if "alpha" not in edit and steering_strength is not None:
        fields["alpha"] = steering_strength
    elif "alpha" not in edit and takes_alpha and compat is None:
        at = {layer: _default_strength(metadata, edit, layer) for layer in steered}
    for layer, strength in strengths.items():
        at[layer] = {"alpha": strength, "unit": edit.get("unit", "raw")}
    first = next(iter(at.values()))
    if strengths or any(other != first for other in at.values()):
        spec: dict[str, Any] = {"stack": [{**fields, "layers": [layer], **at[layer]} for layer in steered]}
    else:
        spec = {**fields, **first, **({} if own is None else {"layers": list(own)})}
    SteeringSpec.parse(spec)
    return spec


def labels_of_each(labels: Labels, count: int) -> list[Sequence[str]]:
    """A list of labels for each prompt. Raises UsageError unless there is one for each."""
    given = list(labels or ())
    if all(isinstance(label, str) for label in given):
        return [given] * count  # type: ignore[list-item]
    if len(given) != count:
        raise UsageError(f"labels: {len(given)} lists for {count} prompts; give one list, or one for each")
    return [list(own) for own in given]


def _takes_alpha(metadata: ProbeMetadata, edit: Mapping[str, Any]) -> bool:
    use = FAMILIES[metadata.family].methods.get(_method(edit))
    return use is not None and "alpha" in use.takes


def _method(edit: Mapping[str, Any]) -> str:
    return str(edit.get("method") or "gradient")


def _default_strength(metadata: ProbeMetadata, edit: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """alpha and unit of a layer; empty where the probe has a strength of the method.

    A layer without a scale takes that of the probe's own layer as a raw strength, which is that long only
    where the direction has length 1. Without that scale, too, the engine refuses the unit by name.
    """
    method, scale = _method(edit), metadata.activation_scale.get(metadata.layer)
    steps = edit.get("num_steps", SteeringSpec.model_fields["num_steps"].default)
    calibrated = metadata.default_edit or {}
    has_own = "alpha" in calibrated and method == next(iter(metadata.methods))
    if has_own or method in metadata.default_alpha or not isinstance(steps, int) or steps < 1:
        return {}  # of a wrong num_steps the spec itself says so
    alpha = LENGTH / steps if method == "gradient" else LENGTH
    known = scale is None or layer in metadata.activation_scale
    unit = edit.get("unit", "normalised" if known else "raw")
    if unit == "normalised":
        return {"unit": unit, "alpha": alpha}
    return {"unit": unit} if scale is None else {"unit": unit, "alpha": alpha * scale}


def _check_labels(metadata: ProbeMetadata, target: Sequence[str], avoid: Sequence[str]) -> None:
    for side, labels in (("target", target), ("avoid", avoid)):
        unknown = [label for label in labels if label not in metadata.labels]
        if unknown:
            known = choices(unknown[0], metadata.labels)
            raise SpecError(side, f"unknown label {listing(unknown)}; known: {known}", unknown)
