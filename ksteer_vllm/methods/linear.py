"""The gradient of a linear probe: the same vector at every step, so n steps are one constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ksteer_kernels import SlotWeights
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow, constant_row, logit, threshold_row
from ksteer_vllm.probes.fold import fold_linear, metrics_of, rows_in_metric


class LinearProgram(FamilyProgram):
    """Slot `probe`: the weights W on the raw residual stream. L = c . (W x + b), so -M grad L = -c W M.

    Slots `probe:variance` and `probe:covariance`, where the probe has the statistics: W M.
    """

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        weight, bias = fold_linear(tensors)
        slots = {"probe": SlotWeights(basis=weight, bias=bias)}
        for metric in metrics_of(self.metadata.settings, tensors):
            slots[f"probe:{metric}"] = SlotWeights(basis=rows_in_metric(weight, tensors, metric))
        return slots

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        c, unit = self.weights(edit), self.unit(edit, layer)
        distance = edit["alpha"] * sum(edit["step_decay"] ** t for t in range(edit["num_steps"]))
        if unit is not None:
            length = self._step_length(c, edit.get("metric", "raw"), tensors)
            distance = distance * unit / length if length > 0 else 0.0
        return constant_row(self.slot_in(edit), -c, distance)

    def _step_length(self, c: Tensor, metric: str, tensors: Mapping[str, Tensor]) -> float:
        """Of M g, g = c W, in the metric: sqrt(g^T M g)."""
        weight, _ = fold_linear(tensors)
        gradient, step = c @ weight, c @ rows_in_metric(weight, tensors, metric)
        return float((gradient @ step).clamp_min(0).sqrt())

    def condition(self, condition: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlannedRow:
        c, sign = self.signed(condition)
        bound = logit(condition["above" if sign > 0 else "below"])
        return threshold_row("probe", readout=c, margin=sign * bound)
