"""LoReSt (Krasheninnikov & Krueger 2024, Low-Rank Representation Steering): remove directions, add a vector.

    x' = x - Q diag(p) Q^T x + b,   Q [d, r] with orthonormal columns, p in {0, 1}^r, b [d], one set per label

fitted through the frozen language model to the replies that show the label, at the positions that steering
the generation edits. p is learned through the binary concrete relaxation (Maddison et al. 2017,
arXiv:1611.00712; Jang et al. 2017, arXiv:1611.01144): sigmoid((logit + logistic noise) / temperature), the
temperature falling; then p is fixed at 0 or 1 and the rest is tuned to it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ksteer_vllm.fit.edit_training import TrainableEdit, fit_edits, orthonormal_rows
from ksteer_vllm.fit.plans import EditPlan
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["LoReST", "LoReSTPlan", "fit"]


class LoReSTPlan(EditPlan):
    """The options of LoReST."""

    hard_steps: Annotated[int, Field(ge=1, description="Like `steps`, once p is 0 or 1.")] = 32
    temperature: Annotated[float, Field(gt=0, description="Temperature of the relaxation at first.")] = 1.0
    last_temperature: Annotated[
        float, Field(gt=0, description="Temperature of the relaxation at the end.")
    ] = 0.1


class LoReST(TrainableEdit):
    """The edit of one label; b counts in a unit in which a step of Adam is as long whatever d is."""

    def __init__(self, hidden_size: int, plan: LoReSTPlan, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.basis = orthonormal_rows(plan.rank, hidden_size, generator)
        self.logit = nn.Parameter(torch.zeros(plan.rank))
        self.offset = nn.Parameter(torch.zeros(hidden_size))
        self.unit = 2 * scale / hidden_size**0.5
        self.plan, self.generator = plan, generator
        self.temperature = plan.temperature
        self.hard = False

    @property
    def bias(self) -> Tensor:
        return self.unit * self.offset

    @property
    def removed(self) -> Tensor:
        """p [r]: which directions are removed, 0 or 1."""
        return (self.logit > 0).float()

    def begin_epoch(self, done: float) -> None:
        ratio = self.plan.last_temperature / self.plan.temperature
        self.temperature = self.plan.temperature * ratio**done

    def next_phase(self) -> int:
        if self.hard:
            return 0
        self.hard = True
        self.logit.requires_grad_(False)
        return self.plan.hard_steps

    def forward(self, x: Tensor) -> Tensor:
        removed = self._relaxed() if self.training and not self.hard else self.removed
        basis = self.basis.weight
        return x - (x @ basis.T * removed) @ basis + self.bias

    def _relaxed(self) -> Tensor:
        """A draw of p from the binary concrete distribution, differentiable in the logits."""
        uniform = torch.rand(self.logit.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6)
        noise = (uniform.log() - (-uniform).log1p()).to(self.logit)
        return torch.sigmoid((self.logit + noise) / self.temperature)


def fit(task: FitTask) -> Probe:
    """A probe of family `lorest`; no engine starts. Raises DataError, UsageError."""
    plan = task.plan(LoReSTPlan)
    fitted = fit_edits(task, plan, lambda size, scale, generator: LoReST(size, plan, scale, generator))
    tensors = {
        "basis": torch.stack([edit.basis.weight for edit in fitted.edits]),
        "removed": torch.stack([edit.removed for edit in fitted.edits]),
        "bias": torch.stack([edit.bias for edit in fitted.edits]),
    }
    return task.probe("lorest", tensors, training=fitted.training, metrics=fitted.metrics)
