"""What a request steers with: the tensors of one fitted method, saved as a plain folder.

A folder holds `probe.safetensors` (the tensors) and `probe.json` (what they mean, and how they were made).
The SHA-256 digest covers both the tensors and every field that changes what they do. Which tensors a family
of methods needs, and their shapes, is said in `ksteer_vllm.spec.families`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ksteer_vllm.errors import ProbeError, listing
from ksteer_vllm.probes.files import read_regular, replace_files
from ksteer_vllm.spec.families import FAMILIES
from ksteer_vllm.spec.where import Where

__all__ = ["METADATA_FILE", "WEIGHTS_FILE", "Artifact", "ModelIdentity", "ProbeMetadata"]

WEIGHTS_FILE = "probe.safetensors"
METADATA_FILE = "probe.json"

MAX_METADATA_BYTES = 2**24
MAX_WEIGHTS_BYTES = 2**33
"""Far beyond what a fit writes; a folder that holds more is damaged or hostile."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class ModelIdentity(BaseModel):
    """The language model an artifact was fitted on; all but `name` must match the engine's model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model_type: str
    hidden_size: Annotated[int, Field(gt=0)]
    num_layers: Annotated[int, Field(gt=0)]


class ProbeMetadata(BaseModel):
    """The contents of `probe.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    family: Annotated[str, Field(description="a family of `ksteer_vllm.spec.families.FAMILIES`")] = "mlp"
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    layer: Annotated[int, Field(ge=0, description="0-based decoder block")]
    layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="decoder blocks with tensors of their own (first dimension); empty: one for all"),
    ] = ()
    site: Literal["output"] = "output"
    activation: Literal["relu"] = "relu"
    model: ModelIdentity
    default_alpha: Annotated[dict[str, Finite], Field(description="method -> alpha")] = {}
    default_where: Annotated[
        dict[str, Any] | None, Field(description="where-clause of requests that give none")
    ] = None
    default_layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="layers of requests that give none; empty: all it has tensors for"),
    ] = ()
    activation_scale: Annotated[
        dict[int, Annotated[float, Field(gt=0, allow_inf_nan=False)]],
        Field(description="layer -> mean of |x - mean(x)| over the fitting data: the normalised unit"),
    ] = {}
    settings: Annotated[dict[str, Any], Field(description="what else changes what the tensors do")] = {}
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
                raise ValueError(
                    error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
                ) from None
        return clause

    @model_validator(mode="after")
    def _consistent(self) -> ProbeMetadata:
        if self.family not in FAMILIES:
            raise ValueError(f"family: unknown {self.family[:80]!r}; known: {', '.join(FAMILIES)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label is named twice")
        for layer in (self.layer, *self.layers, *self.activation_scale):
            if layer >= self.model.num_layers:
                raise ValueError(f"layer: {layer} of a model with {self.model.num_layers} layers")
        if self.layers and (list(self.layers) != sorted(set(self.layers)) or self.layer not in self.layers):
            raise ValueError("layers: expected ascending, distinct layers that include `layer`")
        unavailable = self.settings.get("unavailable", [])
        if not isinstance(unavailable, list) or not all(isinstance(name, str) for name in unavailable):
            raise ValueError("settings.unavailable: expected a list of methods")
        methods = FAMILIES[self.family].methods
        if absent := sorted(set(self.default_layers) - set(self.layers or (self.layer,))):
            raise ValueError(f"default_layers: no tensors for layer {absent[0]}")
        unknown = sorted(m for m in self.default_alpha if m not in methods or "alpha" not in methods[m].takes)
        if unknown:
            raise ValueError(
                f"default_alpha: family {self.family!r} has no method {unknown[0]!r} with an alpha"
            )
        return self


@dataclass(frozen=True)
class Artifact:
    """Checked tensors (float32, on the CPU) and metadata of any family.

    tensors: as `FAMILIES[family].tensors` says; with metadata.layers, each has one more, first dimension.
    Raises ProbeError naming the tensor whose shape or values do not fit.
    """

    metadata: ProbeMetadata
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        family, sizes = FAMILIES[self.metadata.family], {"d": self.metadata.model.hidden_size}
        sizes["K"] = len(self.metadata.labels)
        if set(self.tensors) != set(family.tensors):
            found, expected = (listing(map(repr, sorted(names))) for names in (self.tensors, family.tensors))
            raise ProbeError(f"holds {found[:500]}; expected {expected}")
        per_layer = (len(self.metadata.layers),) if self.metadata.layers else ()
        for name, dimensions in family.tensors.items():
            tensor, names = self.tensors[name], dimensions.split()
            wanted = [*per_layer]
            for axis, letter in enumerate(names, start=len(per_layer)):
                if letter not in sizes and axis < tensor.ndim:
                    sizes[letter] = int(letter) if letter.isdigit() else tensor.shape[axis]
                wanted.append(sizes.get(letter, 0))
            if list(tensor.shape) != wanted or 0 in wanted:
                expected = " ".join([*("layers" for _ in per_layer), *names])
                raise ProbeError(
                    f"{name}: shape {tuple(tensor.shape)}, expected {tuple(wanted)} ({expected})"
                )
            if not torch.isfinite(tensor).all():
                raise ProbeError(f"{name}: has values that are not finite")

    @property
    def labels(self) -> tuple[str, ...]:
        return self.metadata.labels

    def at(self, layer: int) -> dict[str, Tensor]:
        """The tensors used at a layer, float64. ProbeError if the artifact has none for it."""
        if not self.metadata.layers:
            return {name: tensor.double() for name, tensor in self.tensors.items()}
        if layer not in self.metadata.layers:
            raise ProbeError(f"no tensors for layer {layer}; it has {list(self.metadata.layers)}")
        index = self.metadata.layers.index(layer)
        return {name: tensor[index].double() for name, tensor in self.tensors.items()}

    def with_metadata(self, **changes: Any) -> Artifact:
        """A copy with some metadata fields replaced (say `default_alpha`)."""
        fields = {**self.metadata.model_dump(), **changes}
        return replace(self, metadata=ProbeMetadata.model_validate(fields))

    def save(self, folder: str | Path) -> Path:
        """Write the folder, replacing an artifact that is there. Returns it.

        An OSError (the disk is full, say) leaves what was there as it was.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = save_tensors(
            {
                name: tensor.detach().to("cpu", torch.float32).contiguous()
                for name, tensor in self.tensors.items()
            }
        )
        metadata = self.metadata.model_copy(update={"digest": _digest(weights, self.metadata)})
        text = json.dumps(metadata.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        replace_files(folder, {WEIGHTS_FILE: weights, METADATA_FILE: text.encode()})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read and check a folder. Raises ProbeError, saying what is wrong and where.

        Whatever the folder holds, no more than MAX_METADATA_BYTES and MAX_WEIGHTS_BYTES are read.
        """
        folder = Path(folder)
        metadata = cls.load_metadata(folder)
        try:
            weights = read_regular(folder / WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
        except OSError as error:
            raise ProbeError(f"{folder / WEIGHTS_FILE}: {error.strerror or error}") from None
        if _digest(weights, metadata) != metadata.digest:
            raise ProbeError(
                f"{folder}: the digest in {METADATA_FILE} does not match the contents of {WEIGHTS_FILE}"
            )
        try:
            tensors = load_tensors(weights)
        except Exception as error:  # of many classes: a header can declare what torch cannot hold
            raise ProbeError(f"{folder / WEIGHTS_FILE}: {str(error)[:200] or type(error).__name__}") from None
        try:
            return cls(metadata, {name: _as_float(name, tensor) for name, tensor in tensors.items()})
        except ProbeError as error:
            raise ProbeError(f"{folder / WEIGHTS_FILE}: {error}") from None

    @staticmethod
    def load_metadata(folder: str | Path) -> ProbeMetadata:
        """Only `probe.json`. Raises ProbeError."""
        path = Path(folder) / METADATA_FILE
        try:
            text = read_regular(path, MAX_METADATA_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ProbeError(f"{path}: {reason}; a probe folder is what `ksteer fit` writes") from None
        try:
            return ProbeMetadata.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ProbeError(f"{path}: {field + ': ' if field else ''}{first['msg']}") from None


def _as_float(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ProbeError(f"{name[:80]}: holds {str(tensor.dtype).removeprefix('torch.')}, expected floats")
    return tensor.float()


_MEANING = ("schema_version", "labels", "layer", "site", "activation", "model")
_MEANING_IF_SET = ("family", "layers", "default_where", "activation_scale", "settings")


def _digest(weights: bytes, metadata: ProbeMetadata) -> str:
    """SHA-256 of the weights file and of the metadata that changes what the weights do."""
    fields = metadata.model_dump(mode="json")
    defaults = {name: ProbeMetadata.model_fields[name].default for name in _MEANING_IF_SET}
    meaning = {name: fields[name] for name in _MEANING}
    meaning |= {name: fields[name] for name in _MEANING_IF_SET if getattr(metadata, name) != defaults[name]}
    meaning["model"].pop("name")
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(weights + b"\0" + canonical.encode()).hexdigest()
