"""LoReFT (Wu et al. 2024, arXiv:2404.03592, equation 2): an edit within a low-rank subspace.

    x' = x + R^T (W x + b - R x),   R [r, d] with orthonormal rows, W [r, d], b [r], one set per label

fitted through the frozen language model to the replies that show the label, at the positions that steering
the generation edits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ksteer_vllm.fit.edit_training import TrainableEdit, fit_edits, orthonormal_rows
from ksteer_vllm.fit.plans import EditPlan
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["LoReFT", "LoReFTPlan", "fit"]


class LoReFTPlan(EditPlan):
    """The options of LoReFT."""


class LoReFT(TrainableEdit):
    """The edit of one label. W starts as R, b as 0: from no edit. b counts in units of scale."""

    def __init__(self, hidden_size: int, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rotation = orthonormal_rows(rank, hidden_size, generator)
        self.weight = nn.Parameter(self.rotation.weight.detach().clone())
        self.offset = nn.Parameter(torch.zeros(rank))
        self.scale = scale

    @property
    def bias(self) -> Tensor:
        return self.scale * self.offset

    def forward(self, x: Tensor) -> Tensor:
        rotation = self.rotation.weight
        return x + (linear(x, self.weight - rotation) + self.bias) @ rotation


def fit(task: FitTask) -> Probe:
    """A probe of family `loreft`; no engine starts. Raises DataError, UsageError."""
    plan = task.plan(LoReFTPlan)
    fitted = fit_edits(task, plan, lambda size, scale, generator: LoReFT(size, plan.rank, scale, generator))
    tensors = {
        "rotation": torch.stack([edit.rotation.weight for edit in fitted.edits]),
        "weight": torch.stack([edit.weight for edit in fitted.edits]),
        "bias": torch.stack([edit.bias for edit in fitted.edits]),
    }
    return task.probe("loreft", tensors, training=fitted.training, metrics=fitted.metrics)
