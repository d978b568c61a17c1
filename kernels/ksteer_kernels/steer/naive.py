"""The truth: steering in x-space, written straight from the definitions.

Any float dtype, any device. Probes come unpadded; x is [n, d] (hidden_states + residual) and every function
is row-wise. The gradient is written by hand and checked against torch.autograd in the tests. Source of the
methods: K-Steering, arXiv 2505.24535, Algorithm 1 (gradient steps) and Algorithm 2 (projection removal).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProbeWeights:
    """A two-hidden-layer ReLU probe: f(x) = W3 relu(W2 relu(W1 x + b1) + b2) + b3.

    w1 [h1, d], b1 [h1], w2 [h2, h1], b2 [h2], w3 [K, h2], b3 [K].
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor


def probe_logits(x: Tensor, probe: ProbeWeights) -> Tensor:
    """Label logits f(x) [n, K] of x [n, d]."""
    h1 = torch.relu(x @ probe.w1.T + probe.b1)
    h2 = torch.relu(h1 @ probe.w2.T + probe.b2)
    return h2 @ probe.w3.T + probe.b3


def steering_loss(x: Tensor, probe: ProbeWeights, label_weights: Tensor) -> Tensor:
    """L(x) = c . f(x) [n]; c [K] is +1/|avoid| on avoid labels and -1/|target| on target labels."""
    return probe_logits(x, probe) @ label_weights


def loss_gradient(x: Tensor, probe: ProbeWeights, label_weights: Tensor) -> Tensor:
    """Gradient of `steering_loss` with respect to x, [n, d]; a ReLU at exactly 0 passes nothing."""
    z1 = x @ probe.w1.T + probe.b1
    z2 = torch.relu(z1) @ probe.w2.T + probe.b2
    readout = probe.w3.T @ label_weights
    through_second = torch.where(z2 > 0, readout, torch.zeros_like(z2))
    through_first = torch.where(z1 > 0, through_second @ probe.w2, torch.zeros_like(z1))
    return through_first @ probe.w1


def gradient_steps(
    x: Tensor,
    probe: ProbeWeights,
    label_weights: Tensor,
    *,
    alpha: float,
    num_steps: int,
    step_decay: float = 1.0,
) -> Tensor:
    """x after num_steps steps x <- x - alpha * step_decay**t * grad L(x), t = 0 .. num_steps - 1."""
    for t in range(num_steps):
        x = x - alpha * step_decay**t * loss_gradient(x, probe, label_weights)
    return x


def reflect(x: Tensor, probe: ProbeWeights, label_weights: Tensor, *, factor: float) -> Tensor:
    """x - factor (x.v)/(v.v) v with v = grad of c . f at x; factor 2 reflects, 1 removes the component.

    For Algorithm 2 label_weights is the mean over the avoid labels. Where v is zero x is returned as it is.
    """
    v = loss_gradient(x, probe, label_weights)
    square = (v * v).sum(-1, keepdim=True)
    scale = torch.where(square == 0, torch.zeros_like(square), (x * v).sum(-1, keepdim=True) / square)
    return torch.where(square == 0, x, x - factor * scale * v)


def add(x: Tensor, vectors: Tensor, label_weights: Tensor, *, alpha: float) -> Tensor:
    """x + alpha * sum_k c_k vectors[k]; vectors [K, d], c [K]: + on target labels, - on avoid labels."""
    return x + alpha * (label_weights @ vectors)
