"""What an edit needs its probe to have measured: the unit of its strength, and the metric of its steps."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.errors import SpecError, listing
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.spec.edit import Edit

__all__ = ["check_measures"]

_WITHOUT = {
    "variance": "its stored deviations are all 1, as in presets paper and pip-0.1.2 and in converted probes",
    "covariance": "its folder has no tensor covariance_up",
}


def check_measures(edit: Edit, layers: Sequence[int], probe: ProbeMetadata) -> None:
    """Refuse a metric or a unit that the probe cannot give at a layer: nothing falls back to raw.

    Args:
        edit: Complete.
        layers: Where it acts.
        probe: The probe it names.

    Raises:
        SpecError: Naming the layers without the statistic, and those with it.
    """
    if edit.metric != "raw":
        known = probe.metric_layers.get(edit.metric, ())
        own = layers if probe.layers else [probe.layer]
        if absent := [layer for layer in own if layer not in known]:
            raise SpecError(
                "metric",
                f"probe {edit.probe!r} has no {edit.metric} for layer {listing(absent)} "
                f"({_WITHOUT[edit.metric]}); it has it for: {listing(known, 200)}. Fit the probe again, or "
                f"leave out metric",
                edit.metric,
            )
    if edit.unit == "normalised":
        scales = probe.scales(edit.metric)
        if unknown := [layer for layer in layers if layer not in scales]:
            what = "activation scale" if edit.metric == "raw" else f"metric_scale of {edit.metric}"
            remedy = "" if edit.metric == "raw" else ". Fit the probe again, or give alpha with unit raw"
            raise SpecError(
                "unit",
                f"probe {edit.probe!r} stores no {what} for layer {listing(unknown)}; it has: "
                f"{listing(scales, 200)}{remedy}",
                edit.unit,
            )
