"""Request and response bodies of the routes, as pydantic models; FastAPI makes the OpenAPI schema of them."""

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
    """vLLM's response if the API key is missing or wrong."""

    error: str


class Versions(BaseModel):
    """Installed versions."""

    ksteer: str
    vllm: str
    torch: str


class Model(BaseModel):
    """The model that is steered."""

    name: Annotated[str, Field(description="The name that requests use.")]
    root: Annotated[str, Field(description="The model the server was started with.")]
    hidden_size: int
    num_layers: int
    model_type: str


class Lifecycle(BaseModel):
    """What may change while the server runs."""

    probe_dirs: Annotated[int, Field(description="The number of directories probes may be loaded from.")]
    admin_key: Annotated[bool, Field(description="Whether changes need the header X-KSteer-Admin-Key.")]
    refused: Annotated[
        str | None, Field(description="Why this server allows no changes, if it allows none.")
    ] = None
    resident: Annotated[
        dict[str, Any],
        Field(description="What the device tables hold: digests, slots, bytes; and the number of workers."),
    ]


class Status(BaseModel):
    """What this server can steer, with which probes, and within which limits."""

    versions: Versions
    model: Model
    layers: Annotated[
        list[int], Field(description="The layers requests may steer, as 0-based decoder blocks.")
    ]
    limits: Annotated[dict[str, int], Field(description="The max_ options of the engine.")]
    reports: Annotated[bool, Field(description="Whether requests may ask for a report.")]
    default: Annotated[
        str | None, Field(description="The preset applied to requests that do not mention steering.")
    ]
    probes: Annotated[list[str], Field(description="The names of the loaded probes.")]
    presets: Annotated[list[str], Field(description="The names of the presets.")]
    methods: Annotated[
        dict[str, dict[str, list[str]]],
        Field(description="Family -> method -> the optional spec fields it takes."),
    ]
    lifecycle: Lifecycle
    features: dict[str, Any]


class ProbeCard(BaseModel):
    """What a client needs to know about a probe."""

    name: str
    digest: str
    family: str
    labels: list[str]
    layers: Annotated[
        list[int], Field(description="The layers with weights of their own. Empty: one set for any layer.")
    ]
    default_layers: Annotated[list[int], Field(description="The layers of requests that name none.")]
    methods: Annotated[list[str], Field(description="First the one of requests that name none.")]
    default_alpha: dict[str, float]
    default_edit: Annotated[
        dict[str, Any] | None,
        Field(
            description="Fields of an edit for requests of the first method that leave them out, before the "
            "other defaults."
        ),
    ]
    label_alpha: Annotated[
        dict[str, float],
        Field(description="Label -> the default edit's alpha towards it, where it has its own."),
    ]
    chat_template_kwargs: Annotated[
        dict[str, Any],
        Field(description="Arguments of the chat template that the prompts of its fit went through."),
    ]
    metrics: Annotated[
        dict[str, list[int]],
        Field(description="Metric -> the layers with statistics for it; raw is always there."),
    ]
    width: Annotated[int | None, Field(description="The number of rows of its basis, where known.")]
    activation_scale: Annotated[bool, Field(description="Whether unit normalised can be used at some layer.")]

    @classmethod
    def of(cls, name: str, probe: ProbeMetadata) -> ProbeCard:
        """The card of a probe under a name."""
        width = probe.settings.get("width", probe.training.get("width"))
        return cls(
            name=name,
            digest=probe.digest,
            family=probe.family,
            labels=list(probe.labels),
            layers=list(probe.layers),
            default_layers=list(probe.default_layers or probe.own_layers),
            methods=list(probe.methods),
            default_alpha=dict(probe.default_alpha),
            default_edit=probe.default_edit,
            label_alpha=dict(probe.label_alpha),
            chat_template_kwargs=probe.chat_template_kwargs,
            metrics={metric: list(layers) for metric, layers in probe.metric_layers.items()},
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
        str,
        Field(
            min_length=1, max_length=255, description="The folder's name in a --ksteer-probe-dir directory."
        ),
    ]
    digest: Annotated[
        str | None, Field(max_length=200, description="Refuse a folder whose contents have another digest.")
    ] = None
    replace: Annotated[bool, Field(strict=True, description="Whether the name may be in use.")] = False


class ProbeLoad(ProbeFolder):
    """Which folder to load, and the name requests will use."""

    name: Annotated[
        str, Field(min_length=1, max_length=256, description="What requests will call the probe.")
    ]


class ProbeRetired(BaseModel):
    """A probe whose name was removed."""

    name: str
    digest: str
    state: Annotated[
        Literal["retiring", "retired"],
        Field(description="retiring while requests admitted earlier still use it, then retired."),
    ]


class Preset(BaseModel):
    """A preset."""

    name: str
    spec: Annotated[dict[str, Any], Field(description="The steering spec.")]
    model: Annotated[str, Field(description="The model name that selects it, for any client.")]
    default: Annotated[
        bool, Field(description="Whether it applies to requests that do not mention steering.")
    ]


class PresetList(BaseModel):
    """Every preset."""

    object: Literal["list"] = "list"
    data: list[Preset]


class PresetDeleted(BaseModel):
    """A preset that was deleted."""

    name: str
    deleted: Literal[True] = True


class Spec(RootModel[dict[str, Any]]):
    """A steering spec, kept as it was given; described as `SteeringSpec`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(SteeringSpec.__pydantic_core_schema__)
