"""What a family's program file provides: the slots of a probe, and a request's row at each layer.

Everything here is float64 on the CPU; the tables round once. The operator is `ksteer_kernels`':
p = basis x, s = program(p), x' = x - basis^T s.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import Flag, Program, RowSettings, SlotWeights
from ksteer_vllm.errors import SpecError
from ksteer_vllm.probes.probe import Probe

__all__ = ["FamilyProgram", "PlannedRow", "logit"]

UNPLACED = -1
"""The slot of a row's settings before the pool has placed its key."""


@dataclass(frozen=True)
class PlannedRow:
    """A row's settings at one layer, and the key of the slot they are for."""

    slot: str
    settings: RowSettings


class FamilyProgram(ABC):
    """One probe's slots and rows.

    A family implements `slots_at` and `row`, and `condition` if a condition can be put on its labels.

    Args:
        probe: Of this family.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.metadata = probe.metadata
        self.index = {label: k for k, label in enumerate(probe.labels)}

    def slots(self) -> dict[str, SlotWeights]:
        """Every slot by key. A probe with tensors of their own for some layers has slots for each."""
        layers = self.metadata.layers or (None,)
        return {
            _key(name, layer): weights
            for layer in layers
            for name, weights in self.slots_at(self.tensors(layer)).items()
        }

    def row_at(self, edit: Mapping[str, Any], layer: int) -> PlannedRow:
        """What an edit does at a layer.

        Args:
            edit: Canonical.
            layer: The decoder block.

        Returns:
            Settings whose slot is still `UNPLACED`, and the key of their slot in `slots`.
        """
        own = layer if self.metadata.layers else None
        row = self.row(edit, self.tensors(own), layer)
        return PlannedRow(_key(row.slot, own), row.settings)

    def condition_at(self, condition: Mapping[str, Any], layer: int) -> PlannedRow:
        """The CONDITION row of a canonical condition at a layer."""
        own = layer if self.metadata.layers else None
        row = self.condition(condition, self.tensors(own))
        return PlannedRow(_key(row.slot, own), row.settings)

    def differs_by_layer(self, edit: Mapping[str, Any]) -> bool:
        """Whether `row_at` depends on the layer."""
        return bool(self.metadata.layers) or edit.get("unit") == "normalised"

    def tensors(self, layer: int | None) -> dict[str, Tensor]:
        """The probe's tensors at a layer, float64."""
        return self.probe.at(self.metadata.layer if layer is None else layer)

    @abstractmethod
    def slots_at(self, tensors: Mapping[str, Tensor]) -> dict[str, SlotWeights]:
        """The weights of one layer.

        Args:
            tensors: The probe's at that layer, float64.

        Returns:
            Name -> what a device slot holds.
        """

    @abstractmethod
    def row(self, edit: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> PlannedRow:
        """What an edit does, in the space of a slot's basis.

        Args:
            edit: Canonical.
            tensors: The probe's at that layer, float64.
            layer: The decoder block, for settings that depend on it.

        Returns:
            Settings, and the slot by its name in `slots_at`.
        """

    def condition(self, condition: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlannedRow:
        """Where an edit under this condition acts.

        Args:
            condition: Canonical: "label", and "above" or "below".
            tensors: The probe's at that layer, float64.

        Returns:
            A CONDITION row.

        Raises:
            SpecError: No condition can be put on the labels of this family.
        """
        raise SpecError(
            "condition.probe", f"a probe of family {self.metadata.family!r} cannot be a condition"
        )

    def weights(self, edit: Mapping[str, Any]) -> Tensor:
        """c [K] float64 of the loss L = c . f (arXiv 2505.24535): +w on avoid labels, -w on target labels."""
        c = torch.zeros(len(self.index), dtype=torch.float64)
        for side, sign in (("avoid", 1.0), ("target", -1.0)):
            for label, weight in edit.get(side, {}).items():
                c[self.index[label]] = sign * weight
        return c

    def unit(self, edit: Mapping[str, Any], layer: int) -> float | None:
        """The length of a normalised step at alpha 1, in the edit's metric, or None for raw ones."""
        if edit.get("unit") != "normalised":
            return None
        return self.metadata.scales(edit.get("metric", "raw"))[layer]

    def slot_in(self, edit: Mapping[str, Any]) -> str:
        """The slot of a classifier whose steps are steepest in the edit's metric."""
        metric = edit.get("metric", "raw")
        return "probe" if metric == "raw" else f"probe:{metric}"

    def signed(self, condition: Mapping[str, Any]) -> tuple[Tensor, float]:
        """(c [K], sign) of a condition: c picks the label, sign is -1 for below."""
        sign = 1.0 if "above" in condition else -1.0
        c = torch.zeros(len(self.index), dtype=torch.float64)
        c[self.index[condition["label"]]] = sign
        return c, sign


def constant_row(slot: str, readout: Tensor, strength: float) -> PlannedRow:
    """x' = x + strength * readout @ basis."""
    return PlannedRow(slot, RowSettings(UNPLACED, Program.ADD, strength=strength, readout=readout))


def vectors_row(
    slot: str, vectors: Tensor, label_weights: Tensor, alpha: float, unit: float | None
) -> PlannedRow:
    """x' = x + alpha sum_k c_k V_k, c = -label_weights; with a unit the sum is scaled to that length."""
    c = -label_weights
    strength = alpha
    if unit is not None:
        length = float((c @ vectors).norm())
        strength = alpha * unit / length if length > 0 else 0.0
    return constant_row(slot, c, strength)


def affine_row(slot: str, *, scale: Tensor, readout: Tensor, strength: float = 1.0) -> PlannedRow:
    """s = gate * (scale * (matrix q) + readout); strength 0: no edit."""
    settings = RowSettings(UNPLACED, Program.AFFINE, strength=strength, scale=scale, readout=readout)
    return PlannedRow(slot, settings)


def threshold_row(slot: str, **settings: Any) -> PlannedRow:
    """A CONDITION row."""
    flags = settings.pop("flags", Flag(0))
    return PlannedRow(slot, RowSettings(UNPLACED, Program.CONDITION, flags=flags, **settings))


def logit(probability: float) -> float:
    """log(p / (1 - p)); infinite at 0 and 1."""
    if probability <= 0 or probability >= 1:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))


def _key(name: str, layer: int | None) -> str:
    return name if layer is None else f"{name}@{layer}"
