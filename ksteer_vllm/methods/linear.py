"""The gradient of a linear probe: the same vector at every step, so n steps are one constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ksteer_kernels import SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, constant_row, logit, threshold_row


class LinearProgram(FamilyProgram):
    """Slot `probe`: the weights on the raw residual stream. L = c . (W x + b), so -grad L = -c W."""

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        weight, bias = _folded(tensors)
        return {"probe": SlotWeights(basis=weight, bias=bias)}

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        c, unit = self.weights(edit), self.unit(edit, layer)
        distance = edit["alpha"] * sum(edit["step_decay"] ** t for t in range(edit["num_steps"]))
        if unit is not None:
            length = float((c @ _folded(tensors)[0]).norm())
            distance = distance * unit / length if length > 0 else 0.0
        return constant_row("probe", -c, distance)

    def condition(self, condition: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlannedRow:
        c, sign = self.signed(condition)
        bound = logit(condition["above" if sign > 0 else "below"])
        return threshold_row("probe", readout=c, margin=sign * bound)


def _folded(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(W [K, d], b [K]) on the raw residual stream."""
    weight = tensors["weight"] / tensors["input_std"]
    return weight, tensors["bias"] - weight @ tensors["input_mean"]
