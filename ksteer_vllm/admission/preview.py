"""What can be said of an engine's options before there is an engine, from the probe folders alone."""

from __future__ import annotations

from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.config import EngineConfig, ResolvedConfig, ResolvedSource
from ksteer_vllm.errors import ProbeError
from ksteer_vllm.probes.metadata import read_metadata
from ksteer_vllm.probes.probe import Probe

__all__ = ["check_presets"]


def check_presets(config: EngineConfig) -> None:
    """Refuse probe folders that cannot be read, and presets that no engine with these probes could run.

    What depends on the model is left to `resolve_config`: every layer counts as open.

    Args:
        config: The options as the operator gave them.

    Raises:
        ProbeError: For a folder that is missing or damaged; names the probe.
        ConfigError: For a preset, by name.
    """
    sources: dict[str, ResolvedSource] = {}
    num_layers = 1
    for name, source in config.probes.items():
        try:
            metadata = Probe.load(source.path).metadata if config.presets else read_metadata(source.path)
        except ProbeError as error:
            raise ProbeError(f"probe {name!r}: {error}") from None
        num_layers = max(num_layers, metadata.model.num_layers)
        sources[name] = ResolvedSource(
            path=source.path, digest=metadata.digest, metric_layers=metadata.metric_layers
        )
    if not config.presets:
        return
    layers = tuple(range(num_layers))
    Registry.from_config(
        ResolvedConfig.model_validate({**dict(config), "probes": sources, "layers": layers, "resolved": True})
    )
