"""Start-up: filling in what an engine's options leave open, and refusing probes that do not fit."""

from __future__ import annotations

from ksteer_vllm.config import EngineConfig, ResolvedConfig, ResolvedSource
from ksteer_vllm.errors import ConfigError, ProbeError
from ksteer_vllm.models import ModelIdentity, check_layers
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES, load

__all__ = ["check_fit", "configured_probes", "resolve_config"]


def resolve_config(config: EngineConfig, model: ModelIdentity) -> ResolvedConfig:
    """Fill in the probes' digests and the open layers, and check that every probe fits the model.

    The result travels to the workers and enters the compile-cache key, so a probe folder that changes its
    layer can never meet a graph compiled for another one.

    Args:
        config: The options as the operator gave them.
        model: The engine's model.

    Returns:
        The options with every choice made.

    Raises:
        ProbeError: If a probe folder is damaged or does not fit the model.
        ConfigError: If a layer does not exist.
    """
    sources: dict[str, ResolvedSource] = {}
    own_layers: set[int] = set()
    for name, source in config.probes.items():
        try:
            probe = Probe.load(source.path)
        except ProbeError as error:
            raise ProbeError(f"probe {name!r}: {error}") from None
        check_fit(name, probe, config, model)
        sources[name] = ResolvedSource(
            path=source.path, digest=probe.metadata.digest, metric_layers=probe.metadata.metric_layers
        )
        own_layers.update(probe.metadata.own_layers, probe.metadata.steered_layers)
    if config.layers == "all":
        layers: tuple[int, ...] = tuple(range(model.num_layers))
    elif config.layers == "probe":
        layers = tuple(sorted(own_layers))
    else:
        layers = tuple(config.layers)
    check_layers("ksteer option layers", layers, model.num_layers, ConfigError)
    if config.capture is not None:
        check_layers("ksteer option capture.layers", config.capture.layers, model.num_layers, ConfigError)
    return ResolvedConfig.model_validate(
        {**dict(config), "probes": sources, "layers": layers, "resolved": True}
    )


def check_fit(name: str, probe: Probe, config: EngineConfig, model: ModelIdentity) -> None:
    """Check that a probe can steer this engine.

    Args:
        name: The probe's, for messages.
        probe: The probe.
        config: Says how wide the tables are.
        model: The engine's.

    Raises:
        ProbeError: If the probe was made for another architecture, or is too wide.
    """
    made_for = probe.metadata.model
    for field in ("hidden_size", "model_type", "num_layers"):
        wanted, found = getattr(made_for, field), getattr(model, field)
        if wanted != found:
            raise ProbeError(
                f"probe {name!r} was fitted on {made_for.name!r} with {field} {wanted}; "
                f"this engine's model {model.name!r} has {found}"
            )
    program = load(FAMILIES[probe.metadata.family].program)(probe)
    width = max(weights.width for weights in program.slots().values())
    if width > config.max_width:
        raise ProbeError(
            f"probe {name!r} has width {width}; this engine allows at most max_width={config.max_width}"
        )


def configured_probes(config: ResolvedConfig) -> dict[str, ProbeMetadata]:
    """Name -> metadata of every configured probe.

    Raises:
        ProbeError: If a folder has changed since the configuration was resolved.
    """
    probes = {}
    for name, source in config.probes.items():
        metadata = Probe.load_metadata(source.path)
        if metadata.digest != source.digest:
            raise ProbeError(f"probe {name!r}: {source.path} has changed since the engine was configured")
        probes[name] = metadata.model_copy(update={"metric_layers": source.metric_layers})
    return probes
