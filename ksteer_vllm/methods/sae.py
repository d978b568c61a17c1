"""Features of a sparse autoencoder: adding decoder directions, or clamping features with the error kept.

clamp: x' = x + sum_k (v_k - f_k(x)) dec_k over the features with a value, f = act(enc x + b_enc).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import Activation, SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, affine_row, vectors_row


class SAEProgram(FamilyProgram):
    """Slots: `features`, encoder rows then decoder rows; `decoder`, the decoder rows alone."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        w_enc, w_dec = tensors["w_enc"], tensors["w_dec"]
        k = len(w_enc)
        zeros = torch.zeros(k, dtype=w_enc.dtype)
        matrix = torch.zeros(2 * k, 2 * k, dtype=w_enc.dtype)
        matrix[k:, :k] = torch.eye(k)
        activation = torch.full((2 * k,), int(Activation.IDENTITY), dtype=torch.int32)
        activation[:k] = int(Activation.JUMPRELU)  # with threshold 0 a ReLU
        features = SlotWeights(
            basis=torch.cat([w_enc, w_dec]),
            bias=torch.cat([tensors["b_enc"], zeros]),
            matrix=matrix,
            activation=activation,
            threshold=torch.cat([tensors["threshold"], zeros]),
        )
        return {"features": features, "decoder": SlotWeights(basis=w_dec)}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        if edit["method"] == "add":
            unit = self.unit(edit, layer)
            return vectors_row("decoder", tensors["w_dec"], self.weights(edit), edit["alpha"], unit)
        k = len(self.index)
        scale, readout = torch.zeros(2, 2 * k, dtype=torch.float64)
        for label, value in edit["values"].items():
            scale[k + self.index[label]] = 1.0
            readout[k + self.index[label]] = -value
        return affine_row("features", scale=scale, readout=readout)
