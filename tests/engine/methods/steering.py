"""One request's edit of some vectors, from spec to device tables to kernel, for any probe and field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import ProbeTables, RowTables, steer_
from ksteer_vllm import SteeringSpec
from ksteer_vllm.device.pool import RequestRows
from ksteer_vllm.device.row_writer import RowWriter
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES, load
from ksteer_vllm.spec.where import NO_END
from testbed.families import random_family_probe

HIDDEN_SIZE = 64
LABELS = ("warm", "cold", "dry")

TOLERANCE = {"rtol": 0.0, "atol": 3e-5}
"""float32 sums of 64 products, of vectors of length about 8 that are moved about as far, against float64:
rounding errors are about 1e-6. A wrong sign, weight or bias is off by 1e-1 and more."""

MIXES: list[dict[str, Any]] = [
    {"target": ["warm"]},
    {"target": {"warm": 3, "dry": 1}, "avoid": ["cold"]},
    {"avoid": {"cold": 1, "dry": 2}},
]
TARGETS: list[dict[str, Any]] = [{"target": ["warm"]}, {"target": {"cold": 1, "dry": 3}}]


def vectors(count: int = 23, *, size: int = HIDDEN_SIZE, seed: int = 5) -> Tensor:
    """x [count, size] float32 of a residual stream's ordinary scale."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def probe(family: str, **changes: Any) -> Probe:
    return random_family_probe(family, hidden_size=HIDDEN_SIZE, labels=LABELS, seed=3, **changes)


def steered(probe: Probe, fields: dict[str, Any], x: Tensor, layer: int | None = None) -> Tensor:
    """x' [n, d] of x [n, d] float32, by the torch backend."""
    family, own = FAMILIES[probe.metadata.family], probe.metadata.layer
    method = fields.get("method", next(iter(family.methods)))
    (edit,) = SteeringSpec.parse({"probe": "it", "method": method, **fields}).edits()
    program = load(family.program)(probe)
    slots = program.slots()
    row = program.row_at(edit.canonical(family.methods[method].takes), own if layer is None else layer)
    width = max(weights.width for weights in slots.values())
    labels = len(probe.labels)
    tables = ProbeTables.allocate(2 * len(slots), width, labels, x.shape[1], torch.float32, "cpu")
    for slot, weights in enumerate(slots.values()):
        tables.load(slot, weights, None if weights.up is None else len(slots) + slot)
    rows = RowTables.allocate(1, 1, width, labels, "cpu")
    settings = replace(row.settings, slot=list(slots).index(row.slot))
    writer = RowWriter(rows, {0: 0}, torch.device("cpu"))
    writer.set(0, RequestRows({(0, 0): settings}, {0: (0, NO_END, 0, 0)}, {0: (0, 0)}, {}))
    writer.write()
    hidden = x.clone()
    steer_(hidden, None, torch.zeros(len(x), dtype=torch.int32), tables, rows, 0, backend="torch")
    return hidden


def weights_of(fields: dict[str, Any]) -> Tensor:
    """Per label +w on target and -w on avoid labels, each side's of sum 1, float64."""
    spec = SteeringSpec.parse({"probe": "it", **fields})
    return torch.tensor(
        [spec.target.get(label, 0.0) - spec.avoid.get(label, 0.0) for label in LABELS], dtype=torch.float64
    )


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), **TOLERANCE)


def assert_moved(actual: Tensor, x: Tensor, least: float = 0.05) -> None:
    """Far more than the tolerance: the comparison before was not between two no-ops."""
    assert float((actual - x).norm(dim=1).min()) > least
