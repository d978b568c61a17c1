"""From labels and strengths, as k-steering has them, to a request's spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.artifact import ProbeMetadata
from ksteer_vllm.errors import SpecError, listing
from ksteer_vllm.ksteering.config import SteeringConfig
from ksteer_vllm.ksteering.engine import PROBE
from ksteer_vllm.spec import SteeringSpec

__all__ = ["LENGTH", "spec_of"]

LENGTH = 0.5
"""Without a strength from anywhere: all steps together go this many times the layer's mean |x - mean(x)|."""


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
    """Plain JSON types. edit: further fields. With different strengths at some layers, a stack of an edit for
    each. Raises SpecError for unknown labels and for fields that do not go together."""
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
    strength = config.steering_strength if steering_strength is None else steering_strength
    if strength is not None:
        fields["alpha"] = strength
    elif compat is None and "gradient" not in metadata.default_alpha:
        steps = edit.get("num_steps", SteeringSpec.model_fields["num_steps"].default)
        fields |= {"unit": "normalised", "alpha": LENGTH / steps}
    fields |= edit
    own, strengths = layers or config.steer_layers, layer_strengths or config.layer_strengths
    spec = fields if own is None else {**fields, "layers": list(own)}
    if strengths:
        spec = {"stack": []}
        for layer in own or metadata.layers or (metadata.layer,):
            at: dict[str, Any] = {"layers": [layer]}
            if layer in strengths:
                at |= {"alpha": strengths[layer], "unit": edit.get("unit", "raw")}
            spec["stack"].append({**fields, **at})
    SteeringSpec.parse(spec)
    return spec


def _check_labels(metadata: ProbeMetadata, target: Sequence[str], avoid: Sequence[str]) -> None:
    for side, labels in (("target", target), ("avoid", avoid)):
        unknown = [label for label in labels if label not in metadata.labels]
        if unknown:
            raise SpecError(
                side, f"no label {listing(unknown)}; there are: {listing(metadata.labels)}", unknown
            )
