"""What an engine can steer with: the loaded probes, the open layers and the limits.

One validator for every way a request can arrive. Pure: no vLLM; the same registry is built from the same
configuration in the front end, the engine core and every worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ksteer_vllm.config import EngineConfig, ProbeSource
from ksteer_vllm.errors import ConfigError, ProbeError, SpecError, listing
from ksteer_vllm.fingerprint import fingerprint
from ksteer_vllm.probe import ModelIdentity, Probe, ProbeMetadata
from ksteer_vllm.spec import SteeringSpec

__all__ = ["AdmittedSpec", "Registry", "resolve_config"]


@dataclass(frozen=True)
class AdmittedSpec:
    """A spec this engine can run: every default filled in.

    canonical: plain JSON types. fingerprint: see `ksteer_vllm.fingerprint`.
    """

    spec: SteeringSpec
    canonical: dict[str, Any]
    fingerprint: str


class Registry:
    """The probes by name, and what a request may ask of them."""

    def __init__(self, probes: Mapping[str, ProbeMetadata], config: EngineConfig) -> None:
        if not config.resolved or not isinstance(config.layers, tuple):
            raise ConfigError("a registry needs a resolved configuration (see resolve_config)")
        self.probes = dict(probes)
        self.config = config
        self.open_layers: tuple[int, ...] = config.layers

    @classmethod
    def from_config(cls, config: EngineConfig) -> Registry:
        """Read the metadata of every configured probe; raises ProbeError if a folder has changed."""
        probes = {}
        for name, source in config.probes.items():
            probes[name] = Probe.load_metadata(source.path)
            if probes[name].digest != source.digest:
                raise ProbeError(f"probe {name!r}: {source.path} has changed since the engine was configured")
        return cls(probes, config)

    def admit(self, value: Any) -> AdmittedSpec:
        """Check a spec (object, mapping or JSON string) against this engine. Raises SpecError."""
        spec = SteeringSpec.parse(value)
        probe = self.probes.get(spec.probe)
        if probe is None:
            raise SpecError(
                "probe", f"no probe named {spec.probe[:80]!r}; loaded: {listing(self.probes)}", spec.probe
            )
        for side in ("target", "avoid"):
            unknown = [label for label in getattr(spec, side) if label not in probe.labels]
            if unknown:
                raise SpecError(
                    f"{side}.{unknown[0][:80]}" if len(unknown) == 1 else side,
                    f"unknown label {listing(repr(label[:80]) for label in unknown)}; probe {spec.probe!r} "
                    f"has: {listing(probe.labels, 100)}",
                    unknown,
                )
        layers = spec.layers if spec.layers is not None else (probe.layer,)
        closed = [layer for layer in layers if layer not in self.open_layers]
        if closed:
            raise SpecError(
                "layers",
                f"layer {listing(closed)} is not open for steering; open: {listing(self.open_layers, 200)}",
                closed,
            )
        if spec.num_steps > self.config.max_steps:
            raise SpecError(
                "num_steps", f"at most {self.config.max_steps}, got {spec.num_steps}", spec.num_steps
            )
        updates: dict[str, Any] = {"layers": layers}
        if spec.alpha is None and spec.method in ("gradient", "add"):
            default = probe.default_alpha.get(spec.method)
            if default is None:
                raise SpecError(
                    "alpha",
                    f"required: probe {spec.probe!r} has no default_alpha for method {spec.method!r}",
                )
            updates["alpha"] = default
        admitted = spec.model_copy(update=updates)
        canonical = admitted.canonical()
        return AdmittedSpec(admitted, canonical, fingerprint(canonical, probe.digest))


def resolve_config(config: EngineConfig, model: ModelIdentity) -> EngineConfig:
    """Fill in probe digests and the open layers, and check that every probe fits the model.

    Raises ProbeError (a folder is damaged or does not fit) or ConfigError (a layer does not exist).
    The result is what travels to the workers and enters the compile-cache key, so a probe folder that
    changes its layer can never meet a graph compiled for another one.
    """
    sources: dict[str, ProbeSource] = {}
    own_layers: set[int] = set()
    for name, source in config.probes.items():
        try:
            probe = Probe.load(source.path)
        except ProbeError as error:
            raise ProbeError(f"probe {name!r}: {error}") from None
        check_fit(name, probe, config, model)
        sources[name] = ProbeSource(path=source.path, digest=probe.metadata.digest)
        own_layers.add(probe.metadata.layer)
    if config.layers == "all":
        layers: tuple[int, ...] = tuple(range(model.num_layers))
    elif config.layers == "probe":
        layers = tuple(sorted(own_layers))
    else:
        layers = tuple(config.layers)
    beyond = [layer for layer in layers if layer >= model.num_layers]
    if beyond:
        raise ConfigError(
            f"ksteer option layers: {listing(beyond)} of a model with layers 0 to {model.num_layers - 1}"
        )
    if config.capture is not None and max(config.capture.layers) >= model.num_layers:
        raise ConfigError(
            f"ksteer option capture.layers: {listing(config.capture.layers)} of a model with layers "
            f"0 to {model.num_layers - 1}"
        )
    return config.model_copy(update={"probes": sources, "layers": layers, "resolved": True})


def check_fit(name: str, probe: Probe, config: EngineConfig, model: ModelIdentity) -> None:
    """Raise ProbeError unless the probe was made for this architecture and fits the tables."""
    made_for = probe.metadata.model
    for field in ("hidden_size", "model_type", "num_layers"):
        wanted, found = getattr(made_for, field), getattr(model, field)
        if wanted != found:
            raise ProbeError(
                f"probe {name!r} was fitted on {made_for.name!r} with {field} {wanted}; "
                f"this engine's model {model.name!r} has {found}"
            )
    if probe.width > config.max_width:
        raise ProbeError(
            f"probe {name!r} is {probe.width} wide; the engine holds at most max_width={config.max_width}"
        )
