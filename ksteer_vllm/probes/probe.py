"""What a request steers with: the tensors of one fitted method, saved as a plain folder.

A folder holds `probe.safetensors` (the tensors) and `probe.json` (what they mean, and how they were made).
The SHA-256 digest covers both the tensors and every field that changes what they do.
`ksteer_vllm.spec.families` says which tensors a family of methods needs, and their shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ksteer_kernels.reference.mlp import MLPWeights, probe_logits
from ksteer_vllm.errors import ProbeError
from ksteer_vllm.probes.files import replace_files
from ksteer_vllm.probes.fold import fold_mlp, metrics_of
from ksteer_vllm.probes.metadata import (
    METADATA_FILE,
    WEIGHTS_FILE,
    ProbeMetadata,
    check_shapes,
    digest_of,
    read_metadata,
    read_verified,
)
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["Probe"]


@dataclass(frozen=True)
class Probe:
    """Checked tensors and metadata of any family.

    Args:
        metadata: The contents of `probe.json`; `metric_layers` is filled in.
        tensors: Name -> float32 tensor on the CPU, as `FAMILIES[family].tensors` and `.optional` say. With
            metadata.layers, each has one more, first dimension.

    Raises:
        ProbeError: If the shape or the values of a tensor do not fit; names the tensor.
    """

    metadata: ProbeMetadata
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_shapes(self.metadata, {name: tensor.shape for name, tensor in self.tensors.items()})
        for name, tensor in self.tensors.items():
            if not torch.isfinite(tensor).all():
                raise ProbeError(f"{name}: has values that are not finite")
            if name == "input_std" and not (tensor > 0).all():
                raise ProbeError("input_std: must be > 0 everywhere")
        found = self.metadata.model_copy(
            update={"metric_layers": _metric_layers(self.metadata, self.tensors)}
        )
        object.__setattr__(self, "metadata", found)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.metadata.labels

    def at(self, layer: int) -> dict[str, Tensor]:
        """The tensors used at a layer.

        Args:
            layer: The 0-based decoder block.

        Returns:
            Name -> float64 tensor.

        Raises:
            ProbeError: If the probe has no tensors for the layer.
        """
        if not self.metadata.layers:
            return {name: tensor.double() for name, tensor in self.tensors.items()}
        if layer not in self.metadata.layers:
            raise ProbeError(f"no tensors for layer {layer}; it has {list(self.metadata.layers)}")
        index = self.metadata.layers.index(layer)
        return {name: tensor[index].double() for name, tensor in self.tensors.items()}

    def with_metadata(self, **changes: Any) -> Probe:
        """A copy with some metadata fields replaced (say `default_alpha`).

        Args:
            changes: Field of `ProbeMetadata` -> its new value.

        Raises:
            pydantic.ValidationError: For values that do not hold, or contradict the rest.
        """
        fields = {**self.metadata.model_dump(), **changes}
        return replace(self, metadata=ProbeMetadata.model_validate(fields))

    def save(self, folder: str | Path) -> Path:
        """Write the probe to a folder, replacing a probe that is there.

        Args:
            folder: Created if it does not exist.

        Returns:
            The folder.

        Raises:
            OSError: If a file cannot be written (the disk is full, say); what was there is unchanged.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = save_tensors(
            {
                name: tensor.detach().to("cpu", torch.float32).contiguous()
                for name, tensor in self.tensors.items()
            }
        )
        metadata = self.metadata.model_copy(update={"digest": digest_of(weights, self.metadata)})
        fields = metadata.model_dump(mode="json", exclude={"metric_layers"})
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        replace_files(folder, {WEIGHTS_FILE: weights, METADATA_FILE: text.encode()})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Read and check a probe folder.

        Args:
            folder: What `save` wrote.

        Returns:
            The probe, its tensors in float32 on the CPU.

        Raises:
            ProbeError: If a file is missing, damaged or too large (`read_verified`), or they do not fit;
                says what is wrong and where.
        """
        folder = Path(folder)
        metadata, weights = read_verified(folder)
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
        """Read `probe.json` alone: no tensor is loaded, and the digest is not checked.

        Args:
            folder: The probe folder.

        Raises:
            ProbeError: If the file is missing or does not hold metadata.
        """
        return read_metadata(folder)

    def logits(self, x: Tensor, layer: int | None = None) -> Tensor:
        """Label logits of residual-stream vectors, for a probe of family `mlp`.

        Args:
            x: [..., d], float32 or float64.
            layer: The layer whose tensors to use, for a probe with several; None: the one it was fitted at.

        Returns:
            Logits [..., K] in x's dtype.

        Raises:
            ProbeError: If the probe is of another family, or has no tensors for the layer.
        """
        if self.metadata.family != "mlp":
            raise ProbeError(f"logits: needs a probe of family 'mlp', this one is {self.metadata.family!r}")
        folded = fold_mlp(self.at(self.metadata.layer if layer is None else layer))
        return probe_logits(x, MLPWeights(*(tensor.to(x) for tensor in vars(folded).values())))


def _metric_layers(metadata: ProbeMetadata, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    if not FAMILIES[metadata.family].has_metrics:
        return {}
    deviations = tensors["input_std"] if metadata.layers else tensors["input_std"][None]
    offered = {
        layer: metrics_of(metadata.settings, {**tensors, "input_std": row})
        for layer, row in zip(metadata.own_layers, deviations, strict=True)
    }
    named = dict.fromkeys(metric for metrics in offered.values() for metric in metrics)
    return {metric: tuple(layer for layer in offered if metric in offered[layer]) for metric in named}


def _as_float(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ProbeError(f"{name[:80]}: holds {str(tensor.dtype).removeprefix('torch.')}, expected floats")
    return tensor.float()
