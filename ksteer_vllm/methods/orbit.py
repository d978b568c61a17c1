"""Gated rotations after ORBIT (arXiv 2606.22357): x' = x + sum_k w_k g_k(x) (Rot(alpha theta_k) - I) P_k x.

P_k projects onto label k's plane, Rot turns its first row u towards its second w;
g_k = sigmoid(gate_k . x + b_k).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import Activation, SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, affine_row


class ORBITProgram(FamilyProgram):
    """Slot `planes`: basis [gates (K), planes (2K), planes (2K)]; the copy's y has u and w swapped.

    With phi = alpha theta: s_u = g ((1 - cos) u.x + sin w.x), s_w = g ((1 - cos) w.x - sin u.x); the first
    planes carry the terms in 1 - cos, the copy those in sin.
    """

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        gates, planes = tensors["gate_weight"], tensors["plane"].flatten(0, 1)
        k, rows = len(gates), len(planes)
        matrix = torch.zeros(k + 2 * rows, k + 2 * rows, dtype=planes.dtype)
        matrix[k : k + rows, k : k + rows] = torch.eye(rows)
        matrix[k + rows :, k : k + rows] = torch.block_diag(*[torch.tensor([[0.0, 1.0], [1.0, 0.0]])] * k)
        activation = torch.full((k + 2 * rows,), int(Activation.IDENTITY), dtype=torch.int32)
        activation[:k] = int(Activation.SIGMOID)
        of_label = torch.arange(k, dtype=torch.int32).repeat_interleave(2)
        none = torch.full((k,), -1, dtype=torch.int32)
        weights = SlotWeights(
            basis=torch.cat([gates, planes, planes]),
            bias=torch.cat([tensors["gate_bias"], torch.zeros(2 * rows, dtype=planes.dtype)]),
            matrix=matrix,
            activation=activation,
            gate_unit=torch.cat([none, of_label, of_label]),
        )
        return {"planes": weights}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        weights, turn = self.weights(edit).abs(), edit["alpha"] * tensors["angle"]
        cosine = (weights * (1 - torch.cos(turn))).repeat_interleave(2)
        sine = (weights * torch.sin(turn))[:, None] * torch.tensor([1.0, -1.0], dtype=torch.float64)
        scale = torch.cat([torch.zeros_like(weights), cosine, sine.flatten()])
        readout = torch.zeros_like(scale)
        return affine_row("planes", scale=scale, readout=readout, strength=float(edit["alpha"] != 0))
