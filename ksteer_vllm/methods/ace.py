"""Affine concept editing (arXiv 2411.09003) and directional ablation (arXiv 2406.11717).

x' = x + sum_k w_k r^_k ((a0_k . r^_k) + alpha_k |r_k| - r^_k . x): alpha on target labels, 0 on avoid labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, affine_row


class ACEProgram(FamilyProgram):
    """Slot `directions`: the unit directions r^ as basis, the identity as matrix."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        unit = _unit(tensors)
        return {"directions": SlotWeights(basis=unit, matrix=torch.eye(len(unit), dtype=unit.dtype))}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        weight = self.weights(edit).abs()
        if edit["method"] == "ablate":
            return affine_row(
                "directions",
                scale=edit["alpha"] * weight,
                readout=torch.zeros_like(weight),
                strength=float(edit["alpha"] != 0),
            )
        alpha = torch.where(self.weights(edit) < 0, edit["alpha"], 0.0)
        base = (tensors["negatives_mean"] * _unit(tensors)).sum(1)
        wanted = base + alpha * tensors["directions"].norm(dim=1)
        return affine_row("directions", scale=weight, readout=-weight * wanted)


def _unit(tensors: Mapping[str, Tensor]) -> Tensor:
    directions = tensors["directions"]
    return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-30)
