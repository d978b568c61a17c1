"""Random probes of every family at a shape's sizes: what is measured is cost, not what an edit does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import SHAPES, steered_layer
from ksteer_vllm import ModelIdentity, ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES

LABELS = tuple(f"label{index}" for index in range(6))
PROBE_WIDTH = 256
RANK = 4
ORTHONORMAL = ("rotation", "basis", "plane")


def random_family_probe(family: str, shape: str, seed: int = 0) -> Probe:
    """A probe for the layer at 60 % depth, of probe width 256, rank 4 and 6 labels."""
    sizes = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    room = {"K": len(LABELS), "d": sizes["hidden_size"], "h": PROBE_WIDTH, "g": PROBE_WIDTH}
    tensors = {
        name: random_tensor(name, [_size(letter, room) for letter in dimensions.split()], generator)
        for name, dimensions in FAMILIES[family].tensors.items()
    }
    identity = ModelIdentity(
        name=shape,
        model_type="llama",
        hidden_size=sizes["hidden_size"],
        num_layers=sizes["num_hidden_layers"],
    )
    metadata = ProbeMetadata(family=family, labels=LABELS, layer=steered_layer(shape), model=identity)
    return Probe(metadata, tensors)


def _size(dimension: str, room: dict[str, int]) -> int:
    return int(dimension) if dimension.isdigit() else room.get(dimension, RANK)


def random_tensor(name: str, shape: list[int], generator: torch.Generator) -> Tensor:
    """Rows of length about 1; subspaces with orthonormal rows, masks of 0 and 1, deviations of about 1."""
    if name == "removed":
        return torch.randint(0, 2, shape, generator=generator).float()
    if name == "input_std":
        return torch.rand(shape, generator=generator) + 0.5
    values = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    if name in ORTHONORMAL:
        return torch.linalg.qr(values.mT)[0].mT.contiguous()
    return values.abs() if name == "threshold" else values


def write_probe(family: str, shape: str, folder: Path) -> Path:
    return random_family_probe(family, shape).save(folder)


def write_probes(shape: str, root: Path) -> dict[str, Path]:
    """family -> folder, for every family."""
    return {family: write_probe(family, shape, root / family) for family in FAMILIES}


def edit_of(family: str, method: str) -> dict[str, object]:
    """A spec of one method with the fields it needs; the probe's name is its family."""
    takes = FAMILIES[family].methods[method].takes
    edit: dict[str, object] = {"probe": family, "method": method}
    if "values" in takes:
        edit["values"] = {LABELS[0]: 1.0, LABELS[1]: 0.0}
    if "target" in takes:
        edit["target"] = [LABELS[0]]
    if "avoid" in takes:
        edit["avoid"] = [LABELS[1]]
    if "alpha" in takes:
        edit["alpha"] = 0.01
    return edit
