"""K-Steering on an MLP probe (arXiv 2505.24535): gradient steps, reflection and projection, label vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ksteer_kernels import Flag, Loss, Program, RowSettings, SlotWeights
from ksteer_kernels.reference.vectors import matched_random
from ksteer_vllm.methods.program import UNPLACED, FamilyProgram, PlannedRow, logit, threshold_row, vectors_row
from ksteer_vllm.probes.fold import fold_mlp, metrics_of
from ksteer_vllm.spec.families import COVARIANCE_UP

_FACTORS = {"reflect": 2.0, "project": 1.0}


class MLPProgram(FamilyProgram):
    """Slots: `probe`, the MLP with the standardisation folded in; `vectors`; `random`.

    Slots `probe:variance` and `probe:covariance`, where the probe has the statistics M: its steps are written
    by the rows W1 M.
    """

    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        folded = fold_mlp(tensors)
        vectors = tensors["label_vectors"]
        probe = SlotWeights(
            basis=folded.w1,
            bias=folded.b1,
            matrix=folded.w2,
            matrix_bias=folded.b2,
            head=folded.w3,
            head_bias=folded.b3,
        )
        slots = {
            "probe": probe,
            "vectors": SlotWeights(basis=vectors),
            "random": SlotWeights(basis=matched_random(vectors)),
        }
        metrics = metrics_of(self.metadata.settings, tensors)
        if "variance" in metrics:
            slots["probe:variance"] = replace(probe, scale=tensors["input_std"] ** 2)
        if "covariance" in metrics:
            slots["probe:covariance"] = replace(probe, up=tensors[COVARIANCE_UP])
        return slots

    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        c, method = self.weights(edit), edit["method"]
        if method in ("add", "random"):
            slot = "vectors" if method == "add" else "random"
            return vectors_row(slot, tensors["label_vectors"], c, edit["alpha"], self.unit(edit, layer))
        readout = c @ tensors["w3"]
        if method in _FACTORS:
            settings = RowSettings(
                UNPLACED, Program.REFLECT, strength=_FACTORS[method], readout=readout, label_weights=c
            )
            return PlannedRow("probe", settings)
        loss, until, unit = edit.get("loss", "mean"), edit.get("until", {}), self.unit(edit, layer)
        hinge = loss["hinge"] if isinstance(loss, Mapping) else None
        settings = RowSettings(
            UNPLACED,
            Program.GRADIENT,
            strength=edit["alpha"] * (1.0 if unit is None else unit),
            num_steps=edit["num_steps"],
            decay=edit["step_decay"],
            loss=Loss.HINGE if hinge else Loss.SOFTMIN if loss == "softmin" else Loss.MEAN,
            margin=logit(hinge) if hinge else 0.0,
            flags=Flag(0) if unit is None else Flag.NORMALISED,
            until_target=logit(until["target"]) if "target" in until else -math.inf,
            until_avoid=logit(until["avoid"]) if "avoid" in until else math.inf,
            readout=readout,
            label_weights=c,
        )
        return PlannedRow(self.slot_in(edit), settings)

    def condition(self, condition: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlannedRow:
        c, sign = self.signed(condition)
        bound = logit(condition["above" if sign > 0 else "below"])
        return threshold_row("probe", label_weights=c, margin=sign * bound)
