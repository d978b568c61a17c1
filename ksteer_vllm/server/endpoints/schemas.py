"""What the routes take and answer, as pydantic models: FastAPI makes the OpenAPI description of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, RootModel
from pydantic.json_schema import JsonSchemaValue

from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.spec.spec import SteeringSpec

__all__ = [
    "ErrorBody",
    "Preset",
    "PresetDeleted",
    "PresetList",
    "ProbeCard",
    "ProbeFolder",
    "ProbeList",
    "ProbeLoad",
    "ProbeRetired",
    "Spec",
    "Status",
    "Unauthorized",
]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """What went wrong, in the shape of vLLM's own errors."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorBody(BaseModel):
    """The body of every error."""

    error: Problem


class Unauthorized(BaseModel):
    """vLLM's answer where the API key is missing or wrong."""

    error: str


class Versions(BaseModel):
    """Installed versions."""

    ksteer: str
    vllm: str
    torch: str


class Model(BaseModel):
    """The model that is steered. name: as requests spell it; root: as the server was started with."""

    name: str
    root: str
    hidden_size: int
    num_layers: int
    model_type: str


class Lifecycle(BaseModel):
    """What may change while the server runs."""

    probe_dirs: Annotated[int, Field(description="directories probes may be loaded from; 0: no changes")]
    admin_key: Annotated[bool, Field(description="changes need the header X-KSteer-Admin-Key")]
    refused: Annotated[str | None, Field(description="why this server can change nothing, if it cannot")] = (
        None
    )
    resident: Annotated[
        dict[str, Any], Field(description="digests, slots and bytes in the device tables, and workers")
    ]


class Status(BaseModel):
    """What this server can steer, with what and within which limits."""

    versions: Versions
    model: Model
    layers: Annotated[list[int], Field(description="layers requests may steer")]
    limits: dict[str, int]
    reports: bool
    default: Annotated[str | None, Field(description="preset of requests that say nothing of steering")]
    probes: list[str]
    presets: list[str]
    methods: Annotated[
        dict[str, dict[str, list[str]]], Field(description="family -> method -> the optional fields it takes")
    ]
    lifecycle: Lifecycle
    features: dict[str, Any]


class ProbeCard(BaseModel):
    """A loaded probe (or any other probe)."""

    name: str
    digest: str
    family: str
    labels: list[str]
    layers: Annotated[list[int], Field(description="layers with weights of their own; empty: any layer")]
    default_layers: Annotated[list[int], Field(description="layers of requests that name none")]
    methods: list[str]
    default_alpha: dict[str, float]
    width: Annotated[int | None, Field(description="rows of its basis, where known")]
    activation_scale: Annotated[bool, Field(description="unit 'normalised' works at some layer")]

    @classmethod
    def of(cls, name: str, probe: ProbeMetadata) -> ProbeCard:
        """The card of a probe under a name."""
        from ksteer_vllm.spec.families import FAMILIES

        unavailable = probe.settings.get("unavailable", ())
        width = probe.settings.get("width", probe.training.get("width"))
        return cls(
            name=name,
            digest=probe.digest,
            family=probe.family,
            labels=list(probe.labels),
            layers=list(probe.layers),
            default_layers=list(probe.default_layers or probe.layers or (probe.layer,)),
            methods=[method for method in FAMILIES[probe.family].methods if method not in unavailable],
            default_alpha=dict(probe.default_alpha),
            width=width if isinstance(width, int) else None,
            activation_scale=bool(probe.activation_scale),
        )


class ProbeList(BaseModel):
    """Every loaded probe."""

    object: Literal["list"] = "list"
    data: list[ProbeCard]


class ProbeFolder(_Closed):
    """Which folder to load."""

    folder: Annotated[
        str, Field(min_length=1, max_length=255, description="in one of the --ksteer-probe-dir directories")
    ]
    digest: Annotated[
        str | None, Field(max_length=200, description="refuse a folder whose contents have another digest")
    ] = None
    replace: Annotated[bool, Field(strict=True, description="the name may be in use")] = False


class ProbeLoad(ProbeFolder):
    """Which folder to load, and the name requests will use."""

    name: Annotated[str, Field(min_length=1, max_length=256)]


class ProbeRetired(BaseModel):
    """A probe that has lost its name. retiring: requests that were admitted before still use it."""

    name: str
    digest: str
    state: Literal["retiring", "retired"]


class Preset(BaseModel):
    """A preset. model: the name any client can call it by."""

    name: str
    spec: dict[str, Any]
    model: str
    default: bool


class PresetList(BaseModel):
    """Every preset."""

    object: Literal["list"] = "list"
    data: list[Preset]


class PresetDeleted(BaseModel):
    """A preset that is gone."""

    name: str
    deleted: Literal[True] = True


class Spec(RootModel[dict[str, Any]]):
    """A steering spec, kept as it was given; described as `SteeringSpec`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(SteeringSpec.__pydantic_core_schema__)
