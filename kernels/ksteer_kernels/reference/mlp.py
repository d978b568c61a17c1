"""K-Steering on an MLP probe: arXiv 2505.24535, Algorithm 1 (gradient steps) and 2 (projection removal).

The gradient is written by hand and checked against torch.autograd in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class MLPWeights:
    """A two-hidden-layer ReLU probe: f(x) = W3 relu(W2 relu(W1 x + b1) + b2) + b3.

    w1 [h1, d], b1 [h1], w2 [h2, h1], b2 [h2], w3 [K, h2], b3 [K].
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor


def probe_logits(x: Tensor, probe: MLPWeights) -> Tensor:
    """Label logits f(x) [n, K] of x [n, d]."""
    h1 = torch.relu(x @ probe.w1.T + probe.b1)
    h2 = torch.relu(h1 @ probe.w2.T + probe.b2)
    return h2 @ probe.w3.T + probe.b3


def steering_loss(x: Tensor, probe: MLPWeights, label_weights: Tensor) -> Tensor:
    """L(x) = c . f(x) [n]; c [K] is +1/|avoid| on avoid labels and -1/|target| on target labels."""
    return probe_logits(x, probe) @ label_weights


def loss_gradient(x: Tensor, probe: MLPWeights, label_weights: Tensor) -> Tensor:
    """Gradient of `steering_loss` with respect to x, [n, d]; a ReLU at exactly 0 passes nothing.

    label_weights: [K], or [n, K] with each token's own.
    """
    z1 = x @ probe.w1.T + probe.b1
    z2 = torch.relu(z1) @ probe.w2.T + probe.b2
    readout = label_weights @ probe.w3
    through_second = torch.where(z2 > 0, readout, torch.zeros_like(z2))
    through_first = torch.where(z1 > 0, through_second @ probe.w2, torch.zeros_like(z1))
    return through_first @ probe.w1


def logit_gradient(
    logits: Tensor, label_weights: Tensor, loss: Literal["mean", "softmin", "hinge"], margin: float = 0.0
) -> Tensor:
    """dL/df [n, K] of the losses of `ksteer_kernels.settings.Loss`; logits [n, K], c = label_weights [K].

    mean: c. softmin: sum_avoid w f + log sum_target w exp(-f). hinge: sum_target w max(0, margin - f) +
    sum_avoid w max(0, f + margin). w = |c|; c < 0 on targets, > 0 on avoids.
    """
    c = label_weights.expand_as(logits)
    if loss == "softmin":
        target = label_weights < 0
        share = torch.softmax(torch.log(label_weights[target].abs()) - logits[:, target], dim=1)
        c = c.clone()
        c[:, target] = -share
    elif loss == "hinge":
        c = torch.where(torch.where(c < 0, logits < margin, logits > -margin), c, torch.zeros_like(c))
    return c


def metric_gradient(gradient: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """(M g [n, d], sqrt(g^T M g) [n, 1]): the steepest direction in the metric |v|^2 = v^T M^-1 v, and the
    length in that metric of the step M g.

    Args:
        gradient: g [n, d].
        metric: The diagonal [d] of M, or M [d, d], symmetric and positive semi-definite; None: the identity.
    """
    if metric is None:
        return gradient, gradient.norm(dim=1, keepdim=True)
    moved = gradient * metric if metric.ndim == 1 else gradient @ metric
    return moved, (moved * gradient).sum(1, keepdim=True).clamp_min(0).sqrt()


def gradient_steps(
    x: Tensor,
    probe: MLPWeights,
    label_weights: Tensor,
    *,
    alpha: float,
    num_steps: int,
    step_decay: float = 1.0,
    loss: Literal["mean", "softmin", "hinge"] = "mean",
    margin: float = 0.0,
    until_target: float = -math.inf,
    until_avoid: float = math.inf,
    normalised: bool = False,
    metric: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(x after the steps, steps taken [n]): x <- x - a_t M grad L(x), t = 0 .. num_steps - 1.

    a_t = alpha * step_decay**t. M, normalised: see `metric_gradient`; a normalised step has length |a_t| in
    the metric, whatever the gradient's. A token stops before a step once every target's logit is at least
    until_target and every avoid's at most until_avoid (unless both are infinite).
    """
    alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
    taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for t in range(num_steps):
        logits = probe_logits(x, probe)
        if math.isfinite(until_target) or math.isfinite(until_avoid):
            low = (logits < until_target)[:, label_weights < 0].any(1)
            high = (logits > until_avoid)[:, label_weights > 0].any(1)
            alive = alive & (low | high)
        gradient = loss_gradient(x, probe, logit_gradient(logits, label_weights, loss, margin))
        step, length = metric_gradient(gradient, metric)
        if normalised:
            step = torch.where(length > 0, step / length, torch.zeros_like(step))
        x = torch.where(alive[:, None], x - alpha * step_decay**t * step, x)
        taken = taken + alive
    return x, taken


def reflect(x: Tensor, probe: MLPWeights, label_weights: Tensor, *, factor: float) -> Tensor:
    """x - factor (x.v)/(v.v) v with v = grad of c . f at x; factor 2 reflects, 1 removes the component.

    For Algorithm 2 label_weights is the mean over the avoid labels. Where v is zero x is returned as it is.
    """
    v = loss_gradient(x, probe, label_weights)
    square = (v * v).sum(-1, keepdim=True)
    scale = torch.where(square == 0, torch.zeros_like(square), (x * v).sum(-1, keepdim=True) / square)
    return torch.where(square == 0, x, x - factor * scale * v)
