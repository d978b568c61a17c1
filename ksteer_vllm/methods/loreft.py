"""LoReFT (arXiv 2404.03592): x' = x + alpha sum_k w_k R_k^T (W_k x + b_k - R_k x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, affine_row


class LoReFTProgram(FamilyProgram):
    """Slot `subspace`: basis [R_1, .., R_K, W_1, .., W_K], so that y = R x - W x on the rows of R."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        rotation, weight = tensors["rotation"].flatten(0, 1), tensors["weight"].flatten(0, 1)
        rows = len(rotation)
        matrix = torch.zeros(2 * rows, 2 * rows, dtype=rotation.dtype)
        matrix[:rows, :rows] = torch.eye(rows)
        matrix[:rows, rows:] = -torch.eye(rows)
        return {"subspace": SlotWeights(basis=torch.cat([rotation, weight]), matrix=matrix)}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        bias = tensors["bias"]
        strength = (edit["alpha"] * self.weights(edit).abs())[:, None].expand_as(bias)
        scale, readout = torch.zeros(2, 2 * bias.numel(), dtype=bias.dtype)
        scale[: bias.numel()] = strength.flatten()
        readout[: bias.numel()] = -(strength * bias).flatten()
        return affine_row("subspace", scale=scale, readout=readout, strength=float(edit["alpha"] != 0))
