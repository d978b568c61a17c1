"""Constant label vectors: CAA (arXiv 2312.06681), ActAdd (arXiv 2308.10248), control vectors; random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import Flag, SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, threshold_row, vectors_row


class VectorsProgram(FamilyProgram):
    """Slots: `vectors` and `random`, x' = x + alpha sum_k c_k V_k."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        vectors = tensors["vectors"]
        return {"vectors": SlotWeights(basis=vectors), "random": SlotWeights(basis=matched_random(vectors))}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        slot = "random" if edit["method"] == "random" else "vectors"
        unit = self.unit(edit, layer)
        return vectors_row(slot, tensors["vectors"], self.weights(edit), edit["alpha"], unit)

    def condition(self, condition: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlannedRow:
        c, sign = self.signed(condition)
        length = tensors["vectors"][self.index[condition["label"]]].norm().clamp_min(1e-30)
        bound = sign * condition["above" if sign > 0 else "below"]
        return threshold_row("vectors", readout=c / length, margin=bound, flags=Flag.COSINE)


CONTROL_SEED = 0x6B737465
"""Far from the small seeds of fits: the control of a random probe must not be the probe again."""


def matched_random(vectors: Tensor, seed: int = CONTROL_SEED) -> Tensor:
    """Random vectors [K, d] with the norms and inner products of `vectors` [K, d], float64.

    V^T = E R (QR); V' = R^T E' with a random orthonormal E' [d, min(K, d)]. Every sum of labels then moves x
    exactly as far as with the true vectors, in a direction that knows nothing of them.
    """
    generator = torch.Generator().manual_seed(seed)
    _, upper = torch.linalg.qr(vectors.double().T)
    noise = torch.randn(vectors.shape[1], upper.shape[0], generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(noise)
    basis = basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)  # uniform over all frames
    return upper.T @ basis.T
