"""What a probe folder says about itself: `probe.json`, and the digest that identifies the whole folder.

Pure: needs neither torch nor vLLM, so a folder can be listed and inspected where neither is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ksteer_vllm.errors import ProbeError, choices, first_problem, listing
from ksteer_vllm.models import ModelIdentity, check_layers
from ksteer_vllm.probes.files import read_regular
from ksteer_vllm.spec.default_edit import parse_default_edit
from ksteer_vllm.spec.families import FAMILIES, Use
from ksteer_vllm.spec.labels import MAX_MAGNITUDE
from ksteer_vllm.spec.where import Where
from ksteer_vllm.versions import VERSION

__all__ = [
    "METADATA_FILE",
    "WEIGHTS_FILE",
    "ProbeMetadata",
    "check_shapes",
    "digest_of",
    "read_metadata",
    "read_verified",
]

WEIGHTS_FILE = "probe.safetensors"
METADATA_FILE = "probe.json"

MAX_METADATA_BYTES = 2**24
MAX_WEIGHTS_BYTES = 2**33
"""Far beyond what a fit writes; a file that holds more is damaged or hostile."""

SCHEMA_VERSION = 1
"""Of the files that this version of the package writes, and the only one it reads."""

Metric = Literal["variance", "covariance"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=MAX_MAGNITUDE, allow_inf_nan=False)]


class ProbeMetadata(BaseModel):
    """The contents of `probe.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    family: Annotated[str, Field(description="A family of `ksteer_vllm.spec.families.FAMILIES`.")] = "mlp"
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    layer: Annotated[int, Field(ge=0, description="The 0-based decoder block it was fitted at.")]
    layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(
            description="The decoder blocks with tensors of their own, by first dimension. Empty: one set."
        ),
    ] = ()
    site: Literal["output"] = "output"
    activation: Literal["relu"] = "relu"
    model: ModelIdentity
    default_alpha: Annotated[
        dict[str, Finite], Field(description="Method -> the strength of requests that give none.")
    ] = {}
    default_where: Annotated[
        dict[str, Any] | None, Field(description="The where-clause of requests that give none.")
    ] = None
    default_layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="The layers of requests that give none. Empty: all it has tensors for."),
    ] = ()
    activation_scale: Annotated[
        dict[int, Annotated[float, Field(gt=0, allow_inf_nan=False)]],
        Field(description="Layer -> mean of |x - mean(x)| over the fitting data: the normalised unit."),
    ] = {}
    metric_scale: Annotated[
        dict[Metric, dict[int, Annotated[float, Field(gt=0, allow_inf_nan=False)]]],
        Field(
            description="Metric M -> layer -> mean of sqrt((x - m)^T M^-1 (x - m)), m = mean(x), over the "
            "fitting data: the normalised unit with that metric."
        ),
    ] = {}
    default_edit: Annotated[
        dict[str, Any] | None,
        Field(
            description="Fields of an edit for requests of its method that leave them out, before the other "
            "defaults: a strength and all that it was calibrated with."
        ),
    ] = None
    label_alpha: Annotated[
        dict[str, Strength],
        Field(
            description="Label -> the default edit's alpha towards it, where one strength does not suit all "
            "labels. Several labels get the mean by their weights; a label that is missing counts with the "
            "alpha of the default edit."
        ),
    ] = {}
    metric_layers: Annotated[
        dict[str, tuple[int, ...]],
        Field(description="Metric -> the layers with statistics for it. Read off the tensors, never stored."),
    ] = {}
    settings: Annotated[
        dict[str, Any], Field(description="Anything else that changes what the tensors do.")
    ] = {}
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    digest: str = ""

    @field_validator("default_where")
    @classmethod
    def _a_where_clause(cls, clause: dict[str, Any] | None) -> dict[str, Any] | None:
        if clause is not None:
            try:
                Where.model_validate(clause)
            except ValidationError as error:
                raise ValueError(first_problem(error).message) from None
        return clause

    @model_validator(mode="after")
    def _consistent(self) -> ProbeMetadata:
        if self.family not in FAMILIES:
            raise ValueError(f"family: unknown {self.family[:80]!r}; known: {choices(self.family, FAMILIES)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label is named twice")
        measured = [layer for scales in self.metric_scale.values() for layer in scales]
        own = dict.fromkeys((self.layer, *self.layers, *self.activation_scale, *measured))
        check_layers("layer", own, self.model.num_layers, ValueError)
        if self.layers and (list(self.layers) != sorted(set(self.layers)) or self.layer not in self.layers):
            raise ValueError("layers: expected ascending, distinct layers that include `layer`")
        unavailable = self.settings.get("unavailable", [])
        if not isinstance(unavailable, list) or not all(isinstance(name, str) for name in unavailable):
            raise ValueError("settings.unavailable: expected a list of methods")
        methods = FAMILIES[self.family].methods
        if self.metric_scale and not FAMILIES[self.family].has_metrics:
            raise ValueError(f"metric_scale: no method of family {self.family!r} takes a metric")
        if self.default_edit is not None:
            self._check_default_edit(self.default_edit)
        if self.label_alpha and "alpha" not in (self.default_edit or {}):
            raise ValueError("label_alpha: needs a default_edit with an alpha")
        if strange := sorted(set(self.label_alpha) - set(self.labels)):
            known = choices(strange[0], self.labels)
            raise ValueError(f"label_alpha: no label {strange[0][:80]!r}; known: {known}")
        if absent := sorted(set(self.default_layers) - set(self.layers or (self.layer,))):
            raise ValueError(f"default_layers: no tensors for layer {absent[0]}")
        unknown = sorted(m for m in self.default_alpha if m not in methods or "alpha" not in methods[m].takes)
        if unknown:
            raise ValueError(
                f"default_alpha: family {self.family!r} has no method {unknown[0]!r} with an alpha"
            )
        return self

    def _check_default_edit(self, fields: Mapping[str, Any]) -> None:
        try:
            layers = parse_default_edit(fields, self.family, self.methods).layers or ()
        except ValueError as error:
            raise ValueError(f"default_edit.{error}") from None
        check_layers("default_edit.layers", layers, self.model.num_layers, ValueError)
        if absent := sorted(set(layers) - set(self.layers or layers)):
            raise ValueError(f"default_edit.layers: no tensors for layer {absent[0]}")

    @property
    def methods(self) -> dict[str, Use]:
        """Those of its family that its tensors allow; first the one of requests that name none."""
        unavailable = self.settings.get("unavailable", ())
        every = FAMILIES[self.family].methods
        chosen = (self.default_edit or {}).get("method")
        ordered = sorted(every, key=lambda name: name != chosen)  # stable
        return {name: every[name] for name in ordered if name not in unavailable}

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template that the prompts of its fit went through; empty if none are kept."""
        prompts = self.training.get("prompts")
        found = prompts.get("chat_template_kwargs") if isinstance(prompts, dict) else None
        return dict(found) if isinstance(found, dict) else {}

    @property
    def own_layers(self) -> tuple[int, ...]:
        """The layers it was fitted at."""
        return self.layers or (self.layer,)

    @property
    def steered_layers(self) -> tuple[int, ...]:
        """The layers of a request that names only labels."""
        chosen: Sequence[int] | None = (self.default_edit or {}).get("layers")
        return tuple(chosen or self.default_layers or self.own_layers)

    def scales(self, metric: str) -> Mapping[int, float]:
        """Layer -> the length of a normalised step at alpha 1.

        Args:
            metric: Its name, `raw` included.

        Returns:
            Only the layers that have statistics for it.
        """
        return self.activation_scale if metric == "raw" else self.metric_scale.get(cast("Metric", metric), {})


def read_metadata(folder: str | Path) -> ProbeMetadata:
    """Read `probe.json` alone.

    Args:
        folder: A probe folder.

    Returns:
        Its checked contents; the weights are not read, so the digest is not verified.

    Raises:
        ProbeError: If the file is missing or invalid.
    """
    path = Path(folder) / METADATA_FILE
    try:
        text = read_regular(path, MAX_METADATA_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ProbeError(f"{path}: {reason}; a probe folder is what `ksteer fit` writes") from None
    try:
        found = ProbeMetadata.model_validate_json(text)
    except ValidationError as error:
        raise ProbeError(f"{path}: {_problem(error)}") from None
    return found.model_copy(update={"metric_layers": {}})  # whatever the file claims


def _problem(error: ValidationError) -> str:
    """What is wrong with a file; where another version of this package may have written it, the remedy."""
    problem = first_problem(error)
    again = "make the probe again (ksteer fit, ksteer convert)"
    if problem.field == "schema_version":
        newer = isinstance(problem.got, int) and problem.got > SCHEMA_VERSION
        remedy = f"upgrade ksteer-vllm, or {again}" if newer else again
        found = f"schema_version {str(problem.got)[:40]!r}"
        return f"{found}; ksteer-vllm {VERSION} reads version {SCHEMA_VERSION}: {remedy}"
    if problem.kind == "extra_forbidden":
        fields = ModelIdentity.model_fields if problem.path[0] == "model" else ProbeMetadata.model_fields
        known = choices(problem.path[-1][:80], fields, len(fields))
        return (
            f"{problem.field[:80]}: unknown field; allowed: {known}; if a newer ksteer-vllm than {VERSION} "
            "wrote the folder, upgrade"
        )
    if problem.kind == "missing":
        return f"{problem.field}: required; if an older ksteer-vllm than {VERSION} wrote the folder, {again}"
    return str(problem)


def read_verified(folder: str | Path) -> tuple[ProbeMetadata, bytes]:
    """Read a folder and verify its digest.

    Whatever the folder holds, no more than MAX_METADATA_BYTES and MAX_WEIGHTS_BYTES are read.

    Args:
        folder: A probe folder.

    Returns:
        The metadata, and the bytes of the weights file.

    Raises:
        ProbeError: If a file is missing or invalid, or the contents do not match the digest.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    try:
        weights = read_regular(folder / WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
    except OSError as error:
        raise ProbeError(f"{folder / WEIGHTS_FILE}: {error.strerror or error}") from None
    if digest_of(weights, metadata) != metadata.digest:
        raise ProbeError(
            f"{folder}: the digest in {METADATA_FILE} does not match the contents of {WEIGHTS_FILE}"
        )
    return metadata, weights


def check_shapes(metadata: ProbeMetadata, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that these are the tensors of the family.

    Args:
        metadata: Says which they are, and how large.
        shapes: Tensor name -> shape.

    Raises:
        ProbeError: For a tensor that is missing, strange or of another shape, naming it.
    """
    family, sizes = FAMILIES[metadata.family], {"d": metadata.model.hidden_size}
    sizes["K"] = len(metadata.labels)
    named = {**family.tensors, **{name: dims for name, dims in family.optional.items() if name in shapes}}
    if set(shapes) != set(named):
        found, expected = (listing(map(repr, sorted(names))) for names in (shapes, family.tensors))
        raise ProbeError(f"holds {found[:500]}; expected {expected}")
    per_layer = (len(metadata.layers),) if metadata.layers else ()
    for name, dimensions in named.items():
        shape, names = tuple(shapes[name]), dimensions.split()
        wanted = [*per_layer]
        for axis, letter in enumerate(names, start=len(per_layer)):
            if letter not in sizes and axis < len(shape):
                sizes[letter] = int(letter) if letter.isdigit() else shape[axis]
            wanted.append(sizes.get(letter, 0))
        if list(shape) != wanted or 0 in wanted:
            expected = " ".join([*("layers" for _ in per_layer), *names])
            raise ProbeError(f"{name}: shape {shape}, expected {tuple(wanted)} ({expected})")


_MEANING = ("schema_version", "labels", "layer", "site", "activation", "model")
_MEANING_IF_SET = (
    "family", "layers", "default_where", "activation_scale", "metric_scale", "default_edit", "label_alpha",
    "settings",
)  # fmt: skip


def digest_of(weights: bytes, metadata: ProbeMetadata) -> str:
    """What identifies a probe: a digest of its weights and of the metadata that changes what they do.

    Args:
        weights: The contents of the weights file.
        metadata: Of which notes, metrics and the model's name do not count.

    Returns:
        SHA-256, in hexadecimal.
    """
    fields = metadata.model_dump(mode="json")
    defaults = {name: ProbeMetadata.model_fields[name].default for name in _MEANING_IF_SET}
    meaning = {name: fields[name] for name in _MEANING}
    meaning |= {name: fields[name] for name in _MEANING_IF_SET if getattr(metadata, name) != defaults[name]}
    meaning["model"].pop("name")
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(weights + b"\0" + canonical.encode()).hexdigest()
