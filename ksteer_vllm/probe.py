"""The probe: a multi-label MLP classifier on one site of the residual stream, saved as a plain folder.

    logits f(x) = W3 relu(W2 relu(W1 z + b1) + b2) + b3,   z = (x - input_mean) / input_std

A folder holds `probe.safetensors` (the weights) and `probe.json` (what they mean, and how they were
made). The SHA-256 digest covers both the weights and every field that changes what they do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ksteer_vllm.errors import ProbeError

__all__ = ["FoldedProbe", "ModelIdentity", "Probe", "ProbeMetadata"]

WEIGHTS_FILE = "probe.safetensors"
METADATA_FILE = "probe.json"

Finite = Annotated[float, Field(allow_inf_nan=False)]


class ModelIdentity(BaseModel):
    """The language model a probe was fitted on; all but `name` must match the engine's model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model_type: str
    hidden_size: Annotated[int, Field(gt=0)]
    num_layers: Annotated[int, Field(gt=0)]


class ProbeMetadata(BaseModel):
    """The contents of `probe.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    layer: Annotated[int, Field(ge=0, description="0-based decoder block")]
    site: Literal["output"] = "output"
    activation: Literal["relu"] = "relu"
    model: ModelIdentity
    default_alpha: dict[Literal["gradient", "add"], Finite] = {}
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    digest: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> ProbeMetadata:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label is named twice")
        if self.layer >= self.model.num_layers:
            raise ValueError(f"layer: {self.layer} of a model with {self.model.num_layers} layers")
        return self


@dataclass(frozen=True)
class FoldedProbe:
    """A probe on the raw residual stream, the standardisation folded into the first layer (float64).

    w1 [H1, d], b1 [H1], w2 [H2, H1], b2 [H2], w3 [K, H2], b3 [K]: logits f(x) without input statistics.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor


@dataclass(frozen=True)
class Probe:
    """Weights (float32, as trained, on the standardised residual stream) and metadata.

    w1 [H1, d], b1 [H1], w2 [H2, H1], b2 [H2], w3 [K, H2], b3 [K], input_mean [d], input_std [d],
    label_vectors [K, d]: per label the mean of positives minus the mean of negatives (CAA), for `add`.
    """

    metadata: ProbeMetadata
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor
    input_mean: Tensor
    input_std: Tensor
    label_vectors: Tensor

    def __post_init__(self) -> None:
        d = self.metadata.model.hidden_size
        k = len(self.metadata.labels)
        h1, h2 = self.w1.shape[0], self.w2.shape[0]
        shapes = {
            "w1": (h1, d),
            "b1": (h1,),
            "w2": (h2, h1),
            "b2": (h2,),
            "w3": (k, h2),
            "b3": (k,),
            "input_mean": (d,),
            "input_std": (d,),
            "label_vectors": (k, d),
        }
        for name, shape in shapes.items():
            tensor: Tensor = getattr(self, name)
            if tuple(tensor.shape) != shape:
                raise ProbeError(f"{name}: shape {tuple(tensor.shape)}, expected {shape}")
            if not torch.isfinite(tensor).all():
                raise ProbeError(f"{name}: has values that are not finite")
        if not (self.input_std > 0).all():
            raise ProbeError("input_std: must be > 0 everywhere")

    @property
    def labels(self) -> tuple[str, ...]:
        return self.metadata.labels

    @property
    def width(self) -> int:
        """The wider of the two hidden layers."""
        return max(self.w1.shape[0], self.w2.shape[0])

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, contiguous float32 on the CPU."""
        return {name: getattr(self, name).detach().to("cpu", torch.float32).contiguous() for name in _TENSORS}

    def folded(self) -> FoldedProbe:
        """The same function of the raw residual stream: W1' = W1 / sigma, b1' = b1 - W1' mu (exact)."""
        f64 = {name: tensor.double() for name, tensor in self.tensors().items()}
        w1 = f64["w1"] / f64["input_std"]
        b1 = f64["b1"] - w1 @ f64["input_mean"]
        return FoldedProbe(w1, b1, f64["w2"], f64["b2"], f64["w3"], f64["b3"])

    def logits(self, x: Tensor) -> Tensor:
        """Label logits [..., K] of residual-stream vectors x [..., d], in x's dtype (float32 or float64)."""
        p = self.folded()
        h1 = torch.relu(x @ p.w1.T.to(x) + p.b1.to(x))
        h2 = torch.relu(h1 @ p.w2.T.to(x) + p.b2.to(x))
        return h2 @ p.w3.T.to(x) + p.b3.to(x)

    def with_metadata(self, **changes: Any) -> Probe:
        """A copy with some metadata fields replaced (say `default_alpha`)."""
        fields = {**self.metadata.model_dump(), **changes}
        return replace(self, metadata=ProbeMetadata.model_validate(fields))

    def save(self, folder: str | Path) -> Path:
        """Write the folder, replacing a probe that is there. Returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = save_tensors(self.tensors())
        metadata = self.metadata.model_copy(update={"digest": _digest(weights, self.metadata)})
        text = json.dumps(metadata.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        for name, data in ((WEIGHTS_FILE, weights), (METADATA_FILE, text.encode())):
            partial = folder / f".{name}.partial"
            partial.write_bytes(data)
            partial.replace(folder / name)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Read and check a folder. Raises ProbeError, saying what is wrong and where."""
        folder = Path(folder)
        metadata = cls.load_metadata(folder)
        try:
            weights = (folder / WEIGHTS_FILE).read_bytes()
        except OSError as error:
            raise ProbeError(f"{folder / WEIGHTS_FILE}: {error.strerror or error}") from None
        if _digest(weights, metadata) != metadata.digest:
            raise ProbeError(f"{folder}: the digest in {METADATA_FILE} does not match the contents")
        try:
            tensors = load_tensors(weights)
        except SafetensorError as error:
            raise ProbeError(f"{folder / WEIGHTS_FILE}: {error}") from None
        if set(tensors) != set(_TENSORS):
            raise ProbeError(f"{folder / WEIGHTS_FILE}: holds {sorted(tensors)}, expected {sorted(_TENSORS)}")
        try:
            return cls(metadata=metadata, **{name: tensor.float() for name, tensor in tensors.items()})
        except (ProbeError, IndexError) as error:
            raise ProbeError(f"{folder / WEIGHTS_FILE}: {error}") from None

    @staticmethod
    def load_metadata(folder: str | Path) -> ProbeMetadata:
        """Only `probe.json`. Raises ProbeError."""
        path = Path(folder) / METADATA_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ProbeError(f"{path}: {reason}; a probe folder is what `ksteer fit` writes") from None
        try:
            return ProbeMetadata.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ProbeError(f"{path}: {field + ': ' if field else ''}{first['msg']}") from None


_TENSORS = ("w1", "b1", "w2", "b2", "w3", "b3", "input_mean", "input_std", "label_vectors")


def _digest(weights: bytes, metadata: ProbeMetadata) -> str:
    """SHA-256 of the weights file and of the metadata that changes what the weights do."""
    meaning = metadata.model_dump(
        mode="json", include={"schema_version", "labels", "layer", "site", "activation", "model"}
    )
    meaning["model"].pop("name")
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(weights + b"\0" + canonical.encode()).hexdigest()
