"""Engine options: `additional_config["ksteer"]`, the same keys and defaults as the `--ksteer-*` flags.

The configuration travels in `VllmConfig.additional_config` and nowhere else, as plain JSON, so it reaches
every process and enters vLLM's compile-cache key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from ksteer_vllm.errors import ConfigError, SpecError, first_problem, listing
from ksteer_vllm.spec.presets import check_preset, read_presets

__all__ = ["CONFIG_KEY", "CaptureConfig", "EngineConfig", "LayerChoice", "enable"]

CONFIG_KEY = "ksteer"

LayerChoice = Literal["probe", "all"] | tuple[Annotated[int, Field(ge=0)], ...]


def _layers(value: Any) -> Any:
    """`probe`, `all`, a list, or the flag's spelling of a list: "3,5,8"."""
    if isinstance(value, str) and value not in ("probe", "all"):
        try:
            value = tuple(int(part) for part in value.split(","))
        except ValueError:
            raise ValueError(f"expected probe, all or a list of layers such as 3,5, got {value!r}") from None
    if isinstance(value, (list, tuple)):
        if negative := [layer for layer in value if isinstance(layer, int) and layer < 0]:
            raise ValueError(f"layers count from 0, got {negative[0]}")
        value = tuple(sorted(set(value)))
    return value


class CaptureConfig(BaseModel):
    """Record the residual stream at these layers (for `ksteer fit`); eager engines only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class ProbeSource(BaseModel):
    """Where a probe folder is and, once resolved, the digest of what was found there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    digest: str = ""


class EngineConfig(BaseModel):
    """Validated engine options. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probes: Annotated[dict[str, ProbeSource], Field(description="name -> probe folder")] = {}
    layers: Annotated[
        LayerChoice, BeforeValidator(_layers), Field(description="open layers: probe, all or a list")
    ] = "probe"
    max_probes: Annotated[int, Field(ge=1, le=4096, description="most probes")] = 8
    max_width: Annotated[
        int, Field(ge=1, le=4096, description="most rows of a probe's basis, such as a probe's width")
    ] = 256
    max_steps: Annotated[int, Field(ge=1, le=65536, description="largest num_steps of a request")] = 256
    max_stages: Annotated[
        int, Field(ge=1, le=64, description="edits in a row at one layer of one request, conditions included")
    ] = 2
    max_stack: Annotated[int, Field(ge=1, le=1024, description="most edits in a request's stack")] = 64
    max_request_layers: Annotated[
        int, Field(ge=1, le=65536, description="most layers of a request, summed over its edits")
    ] = 1024
    max_spec_bytes: Annotated[
        int, Field(ge=64, le=2**24, description="largest spec of a request, in bytes of JSON")
    ] = 65536
    max_presets: Annotated[int, Field(ge=1, le=65536, description="most presets")] = 256
    max_slots: Annotated[
        int,
        Field(
            ge=0,
            le=65536,
            description="device slots for probes (an MLP probe takes three, others one, for each layer "
            "with tensors of its own); 0: what the start-up probes take, and 4 x max_probes more where "
            "probe_dirs are named",
        ),
    ] = 0
    max_labels: Annotated[
        int,
        Field(
            ge=0,
            le=65536,
            description="most labels of a probe; 0: the most among the start-up probes, at least 64 "
            "where probe_dirs are named",
        ),
    ] = 0
    probe_dirs: Annotated[
        tuple[str, ...],
        Field(description="directories whose folders may be loaded as probes while serving"),
    ] = ()
    presets: Annotated[dict[str, Any], Field(description="name -> spec, which requests may name")] = {}
    default: Annotated[
        str, Field(description="preset for requests that say nothing of steering; empty: none")
    ] = ""
    reports: Annotated[bool, Field(description="requests may ask for a report")] = True
    sample_reports: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="share of the requests that steer generation alone whose shifts the metrics count",
        ),
    ] = 0.0
    decoder: Annotated[str, Field(description="dotted path of the decoder stack, if it cannot be found")] = ""
    kernels: Annotated[
        Literal["auto", "torch", "triton"],
        Field(
            description="auto: Triton on a GPU; on a CPU torch, with the native kernel where it can be built"
        ),
    ] = "auto"
    capture: CaptureConfig | None = None
    resolved: Annotated[bool, Field(description="set by start-up: digests and layers are filled in")] = False

    @field_validator("probes", mode="before")
    @classmethod
    def _probe_paths(cls, probes: Any) -> Any:
        if not isinstance(probes, Mapping):
            raise ValueError("expected an object of name -> probe folder")
        return {
            name: {"path": str(source)} if isinstance(source, (str, Path)) else source
            for name, source in probes.items()
        }

    @field_validator("presets", mode="before")
    @classmethod
    def _presets_file(cls, presets: Any) -> Any:
        return read_presets(presets) if isinstance(presets, (str, Path)) else presets

    @field_validator("presets")
    @classmethod
    def _preset_specs(cls, presets: dict[str, Any]) -> dict[str, Any]:
        for name, spec in presets.items():
            try:
                check_preset(name, spec)
            except SpecError as error:
                raise ValueError(f"preset {name!r}: {error}") from None
        return presets

    @classmethod
    def parse(cls, value: Any) -> EngineConfig:
        """Raises ConfigError, naming the key."""
        try:
            config = cls.model_validate(value)
        except ValidationError as error:
            first = first_problem(error)
            key = ".".join(first.path[:2]) or CONFIG_KEY
            if first.kind == "extra_forbidden":
                allowed = ", ".join(name for name in cls.model_fields if name != "resolved")
                raise ConfigError(f"ksteer option {key}: unknown; allowed: {allowed}") from None
            raise ConfigError(f"ksteer option {key}: {first.message} (got {first.got!r})") from None
        if len(config.probes) > config.max_probes:
            raise ConfigError(
                f"ksteer option max_probes: {config.max_probes} slots for {len(config.probes)} probes"
            )
        if len(config.presets) > config.max_presets:
            raise ConfigError(
                f"ksteer option max_presets: {config.max_presets} allowed, {len(config.presets)} given"
            )
        if config.sample_reports and not config.reports:
            raise ConfigError("ksteer option sample_reports: needs reports, which this engine refuses")
        if config.default and config.default not in config.presets:
            raise ConfigError(
                f"ksteer option default: no preset named {config.default!r}; "
                f"there are: {listing(config.presets)}"
            )
        return config

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types, for `additional_config`."""
        return self.model_dump(mode="json", exclude_none=True)


def enable(
    probes: Mapping[str, str | Path] | None = None,
    layers: Literal["probe", "all"] | Sequence[int] = "probe",
    **options: Any,
) -> dict[str, Any]:
    """`LLM(model, additional_config=ksteer_vllm.enable(probes={"tones": path}))` turns steering on.

    probes: name -> probe folder. layers: which layers requests may steer: `probe` (those of the named
    probes), `all`, or a list. options: the other keys of `EngineConfig` (max_probes, max_width, max_steps,
    max_stages, reports, decoder, kernels), as the `--ksteer-*` flags. Raises ConfigError.
    """
    chosen: Any = layers if isinstance(layers, str) else list(layers)
    config = EngineConfig.parse({"probes": dict(probes or {}), "layers": chosen, **options})
    return {CONFIG_KEY: config.as_json()}
