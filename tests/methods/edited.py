"""One artifact's edit of some vectors through its program and the device tables, as the engine runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import ProbeTables, RowTables, steer_
from ksteer_vllm import ModelIdentity, ProbeMetadata
from ksteer_vllm.artifact import Artifact
from ksteer_vllm.methods import FAMILIES, load

LABELS = ("warm", "dry", "wry")
HIDDEN_SIZE = 32


def artifact_of(family: str, tensors: Mapping[str, Tensor]) -> Artifact:
    model = ModelIdentity(name="tiny", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=4)
    return Artifact(ProbeMetadata(family=family, labels=LABELS, layer=1, model=model), tensors)


def edited(artifact: Artifact, edit: Mapping[str, Any], x: Tensor) -> Tensor:
    """x' [n, d] of x [n, d] float32; edit: canonical."""
    program = load(FAMILIES[artifact.metadata.family].program)(artifact)
    slots, row = program.slots(), program.row_at(edit, artifact.metadata.layer)
    width = max(slot.width for slot in slots.values())
    probes = ProbeTables.allocate(1, width, len(LABELS), HIDDEN_SIZE, torch.float32, "cpu")
    probes.load(0, slots[row.slot])
    rows = RowTables.allocate(1, 1, width, len(LABELS), "cpu")
    rows.slot[0, 0] = 0
    rows.program[0, 0] = int(row.settings.program)
    rows.strength[0, 0] = row.settings.strength
    for name in ("scale", "readout"):
        values = getattr(row.settings, name)
        getattr(rows, name)[0, 0, : len(values)] = values.float()
    hidden = x.clone()
    steer_(hidden, None, torch.zeros(len(x), dtype=torch.int32), probes, rows, 0, backend="torch")
    return hidden
