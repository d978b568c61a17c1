"""Engine options: `additional_config["ksteer"]`, the same keys and defaults as the `--ksteer-*` flags.

The configuration travels in `VllmConfig.additional_config` and nowhere else, as plain JSON, so it reaches
every process and enters vLLM's compile-cache key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from ksteer_vllm.errors import ConfigError, SpecError, choices, first_problem
from ksteer_vllm.spec.presets import check_preset, read_presets

__all__ = [
    "CONFIG_KEY",
    "CaptureConfig",
    "EngineConfig",
    "LayerChoice",
    "ProbeSource",
    "ResolvedConfig",
    "ResolvedSource",
    "enable",
]

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
    """Where a probe folder is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str


class ResolvedSource(ProbeSource):
    """Where a probe folder is, and what was found there."""

    digest: str
    metric_layers: Annotated[
        Mapping[str, tuple[int, ...]],
        Field(description="Metric -> the layers with statistics for it, which only the tensors show."),
    ] = {}


class EngineConfig(BaseModel):
    """The options of an engine, as the operator gives them. Unknown keys are refused.

    Each is a key of `additional_config["ksteer"]`, a keyword of `enable` and, spelt `--ksteer-KEY`, a flag of
    `vllm serve`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    probes: Annotated[
        Mapping[str, ProbeSource], Field(description="The probe folders that requests can use, by name.")
    ] = {}
    layers: Annotated[
        LayerChoice,
        BeforeValidator(_layers),
        Field(
            description="The layers requests may steer: probe (those of the named probes), all, or a list."
        ),
    ] = "probe"
    max_probes: Annotated[
        int, Field(ge=1, le=4096, description="The largest number of probes loaded at the same time.")
    ] = 8
    max_width: Annotated[
        int,
        Field(
            ge=1,
            le=4096,
            description="The largest width of a probe: the rows of its basis, such as its hidden units.",
        ),
    ] = 256
    max_steps: Annotated[
        int, Field(ge=1, le=65536, description="The largest num_steps a request may ask for.")
    ] = 256
    max_stages: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="The largest number of edits a request may make in a row at one layer; a condition "
            "counts as one.",
        ),
    ] = 2
    max_stack: Annotated[
        int, Field(ge=1, le=1024, description="The largest number of edits in a request's stack.")
    ] = 64
    max_request_layers: Annotated[
        int,
        Field(
            ge=1,
            le=65536,
            description="The largest number of layers a request may steer, summed over its edits.",
        ),
    ] = 1024
    max_spec_bytes: Annotated[
        int, Field(ge=64, le=2**24, description="The largest size of a request's spec, in bytes of JSON.")
    ] = 65536
    max_presets: Annotated[int, Field(ge=1, le=65536, description="The largest number of presets.")] = 256
    max_slots: Annotated[
        int,
        Field(
            ge=0,
            le=65536,
            description="The number of device slots for probes. For each layer with tensors of its own, an "
            "MLP probe takes three slots and any other probe one; the variance as a metric takes one more, a "
            "covariance two. 0 means as many as the start-up probes take, plus 6 x max_probes if there are "
            "probe_dirs.",
        ),
    ] = 0
    max_labels: Annotated[
        int,
        Field(
            ge=0,
            le=65536,
            description="The largest number of labels a probe may have. 0 means as many as the start-up "
            "probes have, and at least 64 if there are probe_dirs.",
        ),
    ] = 0
    probe_dirs: Annotated[
        tuple[str, ...],
        Field(description="The directories whose folders may be loaded as probes while serving."),
    ] = ()
    presets: Annotated[dict[str, Any], Field(description="Specs that requests can name, by name.")] = {}
    default: Annotated[
        str,
        Field(description="The preset applied to requests that do not mention steering; empty for none."),
    ] = ""
    reports: Annotated[bool, Field(description="Whether requests may ask for a report.")] = True
    sample_reports: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="The share, 0 to 1, of the requests that steer generation alone whose shifts are "
            "recorded in the metrics.",
        ),
    ] = 0.0
    decoder: Annotated[
        str,
        Field(description="The dotted path of the decoder stack, for a model in which it is not found."),
    ] = ""
    kernels: Annotated[
        Literal["auto", "torch", "triton"],
        Field(
            description="The kernels to run. auto means triton on a GPU, and torch on a CPU, with the native "
            "kernel if it can be built."
        ),
    ] = "auto"
    capture: Annotated[
        CaptureConfig | None,
        Field(description="The layers at which requests may have activations recorded; none by default."),
    ] = None

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
    def parse(cls, value: Any) -> Self:
        """Options from a mapping.

        Args:
            value: The keys of this class, in plain JSON types.

        Returns:
            The validated options.

        Raises:
            ConfigError: Naming the key, what it got and what is allowed.
        """
        try:
            config = cls.model_validate(value)
        except ValidationError as error:
            first = first_problem(error)
            key = ".".join(first.path[:2]) or CONFIG_KEY
            if first.kind == "extra_forbidden":
                allowed = choices(first.path[0], cls.model_fields, len(cls.model_fields))
                raise ConfigError(f"ksteer option {key}: unknown; allowed: {allowed}") from None
            raise ConfigError(f"ksteer option {key}: {first.message} (got {first.got!r})") from None
        if len(config.probes) > config.max_probes:
            raise ConfigError(
                f"ksteer option max_probes: at most {config.max_probes} probes, got {len(config.probes)}"
            )
        if len(config.presets) > config.max_presets:
            raise ConfigError(
                f"ksteer option max_presets: at most {config.max_presets} presets, got {len(config.presets)}"
            )
        if config.sample_reports and not config.reports:
            raise ConfigError("ksteer option sample_reports: needs reports, which are turned off")
        if config.default and config.default not in config.presets:
            raise ConfigError(
                f"ksteer option default: no preset named {config.default!r}; "
                f"available: {choices(config.default, config.presets)}"
            )
        return config

    def as_json(self) -> dict[str, Any]:
        """The options as plain JSON types, for `additional_config`."""
        return self.model_dump(mode="json", exclude_none=True)


class ResolvedConfig(EngineConfig):
    """The options of an engine whose model is known, with every open choice made.

    Created at start-up (`admission.resolve`) and written back into `additional_config["ksteer"]`, from which
    every process reads it. The key `resolved` distinguishes it from the options the operator gave.
    """

    probes: Mapping[str, ResolvedSource] = {}
    layers: tuple[int, ...]
    resolved: Literal[True]

    @staticmethod
    def recognises(value: Any) -> bool:
        """Whether plain JSON types hold a resolved configuration rather than an operator's options."""
        return isinstance(value, Mapping) and "resolved" in value


def enable(
    probes: Mapping[str, str | Path] | None = None,
    layers: Literal["probe", "all"] | Sequence[int] = "probe",
    **options: Any,
) -> dict[str, Any]:
    """Turn steering on: `LLM(model, additional_config=ksteer_vllm.enable(probes={"tones": path}))`.

    Args:
        probes: Name -> probe folder; requests name a probe by its name.
        layers: The layers requests may steer: `probe` (those of the named probes), `all`, or a list of
            0-based decoder blocks.
        **options: The other keys of `EngineConfig`, such as max_probes, presets or reports, with the meanings
            and defaults of the `--ksteer-*` flags.

    Returns:
        A value for vLLM's `additional_config`, in plain JSON types. Merge it with other keys as you like.

    Raises:
        ConfigError: If an option is unknown or its value is not allowed.
    """
    chosen: Any = layers if isinstance(layers, str) else list(layers)
    config = EngineConfig.parse({"probes": dict(probes or {}), "layers": chosen, **options})
    return {CONFIG_KEY: config.as_json()}
