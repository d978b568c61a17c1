"""MAT-Steer (arXiv 2502.12446): x' = x + alpha sum_k w_k g_k(x) v_k, g_k = sigmoid(gate_k . x + b_k)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import Activation, SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, affine_row


class MATProgram(FamilyProgram):
    """Slot `gated`: basis [gates (K), vectors (K)], each vector gated by its label's unit."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        gates, vectors = tensors["gate_weight"], tensors["vectors"]
        k = len(gates)
        activation = torch.full((2 * k,), int(Activation.IDENTITY), dtype=torch.int32)
        activation[:k] = int(Activation.SIGMOID)
        gate_unit = torch.arange(-k, k, dtype=torch.int32).clamp_min(-1)
        weights = SlotWeights(
            basis=torch.cat([gates, vectors]),
            bias=torch.cat([tensors["gate_bias"], torch.zeros(k, dtype=gates.dtype)]),
            activation=activation,
            gate_unit=gate_unit,
        )
        return {"gated": weights}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        strength = edit["alpha"] * self.weights(edit).abs()
        readout = torch.cat([torch.zeros_like(strength), -strength])
        scale = torch.zeros_like(readout)
        return affine_row("gated", scale=scale, readout=readout, strength=float(edit["alpha"] != 0))
