"""The probe: a multi-label MLP classifier on one site of the residual stream (family `mlp`).

    logits f(x) = W3 relu(W2 relu(W1 z + b1) + b2) + b3,   z = (x - input_mean) / input_std

Saved as `ksteer_vllm.probes.probe` says: `probe.safetensors` and `probe.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm.errors import ProbeError
from ksteer_vllm.probes.probe import Artifact, ModelIdentity, ProbeMetadata
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["FoldedProbe", "ModelIdentity", "Probe", "ProbeMetadata"]


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

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> FoldedProbe:
        """From a probe's tensors at one layer: W1' = W1 / sigma, b1' = b1 - W1' mu (exact)."""
        f64 = {name: tensor.double() for name, tensor in tensors.items()}
        w1 = f64["w1"] / f64["input_std"]
        b1 = f64["b1"] - w1 @ f64["input_mean"]
        return cls(w1, b1, f64["w2"], f64["b2"], f64["w3"], f64["b3"])

    def logits(self, x: Tensor) -> Tensor:
        """Label logits [..., K] of residual-stream vectors x [..., d], in x's dtype (float32 or float64)."""
        h1 = torch.relu(x @ self.w1.T.to(x) + self.b1.to(x))
        h2 = torch.relu(h1 @ self.w2.T.to(x) + self.b2.to(x))
        return h2 @ self.w3.T.to(x) + self.b3.to(x)


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
        if self.metadata.family != "mlp":
            raise ProbeError(f"a probe is of family 'mlp', this is {self.metadata.family!r}")
        if self.metadata.layers:
            raise ProbeError("layers: a probe has one set of weights, for the layer it was fitted at")
        self.artifact()
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
        names = FAMILIES["mlp"].tensors
        return {name: getattr(self, name).detach().to("cpu", torch.float32).contiguous() for name in names}

    def artifact(self) -> Artifact:
        """The probe as an artifact of family `mlp`. Raises ProbeError if a tensor does not fit."""
        return Artifact(self.metadata, self.tensors())

    def folded(self) -> FoldedProbe:
        """The same function of the raw residual stream."""
        return FoldedProbe.of(self.tensors())

    def logits(self, x: Tensor) -> Tensor:
        """Label logits [..., K] of residual-stream vectors x [..., d], in x's dtype (float32 or float64)."""
        return self.folded().logits(x)

    def with_metadata(self, **changes: Any) -> Probe:
        """A copy with some metadata fields replaced (say `default_alpha`)."""
        fields = {**self.metadata.model_dump(), **changes}
        return replace(self, metadata=ProbeMetadata.model_validate(fields))

    def save(self, folder: str | Path) -> Path:
        """Write the folder, replacing a probe that is there. Returns it."""
        return self.artifact().save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Read and check a folder. Raises ProbeError, saying what is wrong and where."""
        return cls.of(Artifact.load(folder))

    @classmethod
    def of(cls, artifact: Artifact) -> Probe:
        """The probe in an artifact of family `mlp`. Raises ProbeError if it is of another."""
        if artifact.metadata.family != "mlp":
            raise ProbeError(f"a probe is of family 'mlp', this is {artifact.metadata.family!r}")
        return cls(metadata=artifact.metadata, **artifact.tensors)

    @staticmethod
    def load_metadata(folder: str | Path) -> ProbeMetadata:
        """Only `probe.json`. Raises ProbeError."""
        return Artifact.load_metadata(folder)
