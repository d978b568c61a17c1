"""Constant label vectors: CAA (arXiv 2312.06681), ActAdd (arXiv 2308.10248), control vectors; random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ksteer_kernels import Flag, SlotWeights
from ksteer_kernels.reference.vectors import matched_random
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
