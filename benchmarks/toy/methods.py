"""Every method as an edit of the stream, from the project's definitions in `ksteer_kernels.reference`.

A combination of labels is the engine's: target labels share weight 1. An edit takes a multiple m of the
method's natural strength, so that one grid serves all: at m = 1 the mean differences of all targets are added
whole (CAA, ACE, the random control), fitted edits are applied whole (LoReFT, LoReST), and probes move the
stream, to first order, by the mean length of x - mean(x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.toy.fits import Directions
from ksteer_kernels.reference.ace import ace
from ksteer_kernels.reference.loreft import loreft
from ksteer_kernels.reference.lorest import lorest
from ksteer_kernels.reference.mlp import MLPWeights, gradient_steps, loss_gradient
from ksteer_kernels.reference.vectors import add
from ksteer_vllm.fit.methods.loreft import LoReFT
from ksteer_vllm.fit.methods.lorest import LoReST
from ksteer_vllm.fit.statistics import activation_scale

__all__ = [
    "Edit",
    "Steps",
    "add_ace",
    "add_gradient",
    "add_lorefts",
    "add_lorests",
    "add_vectors",
    "k_steering",
    "natural_step",
]

Edit = Callable[[Tensor, float], Tensor]
"""(x [n, d], m) -> x' [n, d]."""


@dataclass(frozen=True)
class Steps:
    """How K-Steering steps."""

    num_steps: int
    loss: Literal["mean", "softmin"] = "mean"


def add_vectors(vectors: Tensor) -> Edit:
    """CAA, or the random control: the targets' vectors, [K, d]."""
    share = _share(len(vectors))
    return lambda x, m: add(x, vectors, share, alpha=m * len(vectors))


def add_gradient(weight: Tensor, x: Tensor) -> Edit:
    """A linear probe's gradient for its targets, [K, d]: the same everywhere."""
    share = _share(len(weight))
    length = float((share @ weight).norm().clamp_min(1e-12))
    return lambda x_, m: add(x_, weight, share, alpha=m * activation_scale(x) / length)


def add_ace(directions: Directions) -> Edit:
    """Affine concept editing of every target; directions of the targets alone."""
    count = len(directions.difference)

    def edit(x: Tensor, m: float) -> Tensor:
        edits = [
            ace(x, difference, mean, alpha=m * count) - x
            for difference, mean in zip(directions.difference, directions.negatives_mean, strict=True)
        ]
        return x + torch.stack(edits).mean(0)

    return edit


def add_lorefts(fitted: Sequence[LoReFT]) -> Edit:
    """The targets' edits, one per target or one for all."""
    weights = [(edit.rotation.weight, edit.weight, edit.bias) for edit in fitted]

    def edit(x: Tensor, m: float) -> Tensor:
        return x + torch.stack([loreft(x, *one, alpha=m * len(weights)) - x for one in weights]).mean(0)

    return edit


def add_lorests(fitted: Sequence[LoReST]) -> Edit:
    """The targets' edits, one per target or one for all."""
    weights = [(edit.basis.weight, edit.removed, edit.bias) for edit in fitted]

    def edit(x: Tensor, m: float) -> Tensor:
        return x + torch.stack([lorest(x, *one, alpha=m * len(weights)) - x for one in weights]).mean(0)

    return edit


def k_steering(probe: MLPWeights, targets: int, steps: Steps, x: Tensor) -> Edit:
    """Gradient steps towards the probe's first labels, as many as there are targets; x: typical vectors."""
    label_weights = _towards(probe, targets)
    natural = natural_step(probe, targets, x) / steps.num_steps

    def edit(x_: Tensor, m: float) -> Tensor:
        return gradient_steps(
            x_, probe, label_weights, alpha=m * natural, num_steps=steps.num_steps, loss=steps.loss
        )[0]

    return edit


def natural_step(probe: MLPWeights, targets: int, x: Tensor) -> float:
    """The alpha at which one step moves x by the mean length of x - mean(x), on average over x [n, d]."""
    length = loss_gradient(x, probe, _towards(probe, targets)).norm(dim=1).mean()
    return activation_scale(x) / float(length.clamp_min(1e-12))


def _towards(probe: MLPWeights, targets: int) -> Tensor:
    """The label weights [K] of the probe's first labels as targets."""
    label_weights = torch.zeros(len(probe.b3))
    label_weights[:targets] = -1 / targets
    return label_weights


def _share(count: int) -> Tensor:
    return torch.full((count,), 1 / count)
