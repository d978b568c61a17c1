"""Resident probes: their weights in device tables, and the readout vector of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import ProbeTables, Program
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.errors import ProbeError
from ksteer_vllm.probe import Probe

__all__ = ["ProbePool", "RowProgram"]

_PROGRAMS = {
    "gradient": Program.GRADIENT,
    "reflect": Program.REFLECT,
    "project": Program.REFLECT,
    "add": Program.ADD,
}
_REFLECTION_FACTOR = {"reflect": 2.0, "project": 1.0}


@dataclass(frozen=True)
class RowProgram:
    """What a request's row holds at each of its layers; readout: [width] float32 on the CPU."""

    slot: int
    program: Program
    num_steps: int
    strength: float
    decay: float
    readout: Tensor
    layers: tuple[int, ...]


@dataclass(frozen=True)
class _Resident:
    slot: int
    labels: dict[str, int]
    w3: Tensor  # [K, H2] float64


class ProbePool:
    """Loads the configured probes into slots, once, and turns admitted specs into row programs.

    A spec costs one [H] readout, whatever it targets: a thousand target/avoid mixes share the weights.
    """

    def __init__(
        self, config: EngineConfig, *, hidden_size: int, weight_dtype: torch.dtype, device: torch.device
    ) -> None:
        probes = {name: Probe.load(source.path) for name, source in config.probes.items()}
        for name, source in config.probes.items():
            if probes[name].metadata.digest != source.digest:
                raise ProbeError(f"probe {name!r}: {source.path} has changed since the engine was configured")
        max_labels = max((len(probe.labels) for probe in probes.values()), default=1)
        self.tables = ProbeTables.allocate(
            config.max_probes, config.max_width, max_labels, hidden_size, weight_dtype, device
        )
        self._resident: dict[str, _Resident] = {}
        for slot, (name, probe) in enumerate(probes.items()):
            folded = probe.folded()
            self.tables.load(
                slot, w1=folded.w1, b1=folded.b1, w2=folded.w2, b2=folded.b2, vectors=probe.label_vectors
            )
            labels = {label: index for index, label in enumerate(probe.labels)}
            self._resident[name] = _Resident(slot, labels, folded.w3)

    def row_program(self, canonical: Mapping[str, Any]) -> RowProgram:
        """The row of an admitted, canonical spec.

        gradient: u = W3^T c with c = +w on avoid and -w on target labels (the gradient of L in the logits).
        reflect, project: c = +w on avoid. add: c = +w on target and -w on avoid, over the label vectors.
        """
        resident = self._resident[canonical["probe"]]
        method: str = canonical["method"]
        coefficients = torch.zeros(len(resident.labels), dtype=torch.float64)
        for side, sign in (("avoid", 1.0), ("target", -1.0)):
            for label, weight in canonical.get(side, {}).items():
                coefficients[resident.labels[label]] = sign * weight
        readout = -coefficients if method == "add" else resident.w3.T @ coefficients
        return RowProgram(
            slot=resident.slot,
            program=_PROGRAMS[method],
            num_steps=canonical.get("num_steps", 1),
            strength=_REFLECTION_FACTOR.get(method, canonical.get("alpha", 0.0)),
            decay=canonical.get("step_decay", 1.0),
            readout=readout.float(),
            layers=tuple(canonical["layers"]),
        )
