"""LoReST: x' = x + alpha sum_k w_k (b_k - Q_k diag(p_k) Q_k^T x), p hard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, affine_row


class LoReSTProgram(FamilyProgram):
    """Slot `subspace`: basis [Q_1^T, .., Q_K^T, b_1, .., b_K], the diagonal p on the rows of Q^T."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        basis, bias = tensors["basis"].flatten(0, 1), tensors["bias"]
        diagonal = torch.cat([tensors["removed"].flatten(), torch.zeros(len(bias), dtype=bias.dtype)])
        return {"subspace": SlotWeights(basis=torch.cat([basis, bias]), matrix=torch.diag(diagonal))}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        strength = edit["alpha"] * self.weights(edit).abs()
        removed = tensors["removed"]
        scale = torch.cat([strength[:, None].expand_as(removed).flatten(), torch.zeros_like(strength)])
        readout = torch.cat([torch.zeros_like(removed).flatten(), -strength])
        return affine_row("subspace", scale=scale, readout=readout, strength=float(edit["alpha"] != 0))
