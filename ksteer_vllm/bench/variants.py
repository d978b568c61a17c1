"""What experiments compare: a probe of a suite, and how a request uses it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["STANDARD", "Variant", "in_a_metric", "variants_for", "variants_of"]


class Variant(BaseModel):
    """A way to steer. probe: its name in the suite. settings: further fields of the edit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    probe: str
    family: str
    method: str
    settings: dict[str, Any] = {}

    def spec(
        self,
        target: Sequence[str],
        avoid: Sequence[str],
        alpha: float,
        *,
        layer: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The spec of a request.

        Args:
            target: The labels to move towards.
            avoid: Those to move away from; dropped where the method does not take it.
            alpha: The strength.
            layer: The only layer to steer; None: those of the probe, or of the variant's settings.
            more: Further fields; they win over the variant's settings.
        """
        takes = FAMILIES[self.family].methods[self.method].takes
        spec: dict[str, Any] = {"probe": self.probe, "method": self.method, "target": list(target)}
        if "avoid" in takes and avoid:
            spec["avoid"] = list(avoid)
        if layer is not None:
            spec["layers"] = [layer]
        return {**spec, "alpha": alpha, **self.settings, **more}


def _variant(name: str, probe: str, family: str, method: str, **settings: Any) -> Variant:
    return Variant(name=name, probe=probe, family=family, method=method, settings=settings)


METRICS = ("variance", "covariance")
"""Metrics of the data in which a gradient step can be the steepest, see the spec field `metric`."""

STANDARD: tuple[Variant, ...] = (
    _variant("K-Steering, 1 step", "mlp", "mlp", "gradient", num_steps=1),
    _variant("K-Steering, 8 steps", "mlp", "mlp", "gradient"),
    _variant("K-Steering, 8 steps, softmin", "mlp", "mlp", "gradient", loss="softmin"),
    *(
        _variant(f"K-Steering, 8 steps, {metric}", "mlp", "mlp", "gradient", metric=metric, unit="normalised")
        for metric in METRICS
    ),
    _variant("linear probe", "linear", "linear", "gradient", num_steps=1),
    _variant("CAA", "caa", "vectors", "add"),
    _variant("ActAdd", "actadd", "vectors", "add"),
    _variant("ACE", "ace", "ace", "ace"),
    _variant("LoReFT", "loreft", "loreft", "loreft"),
    _variant("LoReST", "lorest", "lorest", "lorest"),
    _variant("ORBIT", "orbit", "orbit", "orbit"),
    _variant("MAT-Steer", "mat_steer", "mat", "mat_steer"),
    _variant("random direction", "caa", "vectors", "random"),
)
"""Everything a whole suite can be asked for, K-Steering first, the matched-norm random control last."""


def variants_of(probes: Collection[str]) -> list[Variant]:
    """The standard variants whose probe exists. probes: names of those that do."""
    return [variant for variant in STANDARD if variant.probe in probes]


def variants_for(probes: Mapping[str, ProbeMetadata]) -> list[Variant]:
    """The standard variants that these probes can run; with several layers, each at all of them as well.

    probes: Name -> metadata, read with the tensors.
    """
    found = [v for v in variants_of(probes) if _can_run(v, probes[v.probe])]
    return [*found, *(together for v in found for together in _at_all_layers(v, probes[v.probe]))]


def in_a_metric(probe: str, metadata: ProbeMetadata) -> list[Variant]:
    """The gradient method of one probe in each metric that it has statistics for: `gradient, variance`."""
    found = [
        _variant(f"gradient, {metric}", probe, metadata.family, "gradient", metric=metric, unit="normalised")
        for metric in METRICS
        if "gradient" in metadata.methods and "metric" in metadata.methods["gradient"].takes
    ]
    return [v for v in found if _can_run(v, metadata)]


def _can_run(variant: Variant, metadata: ProbeMetadata) -> bool:
    """Whether the probe has the statistics of the variant's metric at all its layers."""
    metric = variant.settings.get("metric")
    own = set(metadata.own_layers)
    return metric is None or own <= {*metadata.metric_layers.get(metric, ())} & {*metadata.scales(metric)}


def _at_all_layers(variant: Variant, metadata: ProbeMetadata) -> Iterator[Variant]:
    """A little at each layer instead of much at one; nothing for a probe of one layer."""
    if len(metadata.layers) > 1 and variant.method in _TOGETHER:
        layers = list(metadata.layers)
        name = f"{variant.name}, layers {'+'.join(map(str, layers))}"
        yield variant.model_copy(update={"name": name, "settings": {**variant.settings, "layers": layers}})


_TOGETHER = ("gradient", "add")
