"""The gradient of a linear probe: the same vector at every step, so n steps are one constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ksteer_kernels import SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, constant_row, logit, threshold_row
from ksteer_vllm.probes.fold import fold_linear


class LinearProgram(FamilyProgram):
    """Slot `probe`: the weights on the raw residual stream. L = c . (W x + b), so -grad L = -c W."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        weight, bias = fold_linear(tensors)
        return {"probe": SlotWeights(basis=weight, bias=bias)}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        c, unit = self.weights(edit), self.unit(edit, layer)
        distance = edit["alpha"] * sum(edit["step_decay"] ** t for t in range(edit["num_steps"]))
        if unit is not None:
            length = float((c @ fold_linear(tensors)[0]).norm())
            distance = distance * unit / length if length > 0 else 0.0
        return constant_row("probe", -c, distance)

    def condition(self, condition: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlannedRow:
        c, sign = self.signed(condition)
        bound = logit(condition["above" if sign > 0 else "below"])
        return threshold_row("probe", readout=c, margin=sign * bound)
