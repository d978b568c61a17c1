"""Gradient steps in the space of a probe's first layer, for every loss, stopping rule and step unit.

    z1 = p + b1;  repeat:  g1 = dL/dz1,  a_t = strength decay^t gain,  s += a_t g1,  z1 -= a_t G g1

Source: K-Steering, arXiv 2505.24535, Algorithm 1; README.md derives the hidden-space form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ksteer_kernels.hidden.token_settings import TokenSettings
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.settings import Flag, Loss


def hidden_layers(z1: Tensor, slot: CPUSlot) -> tuple[Tensor, Tensor]:
    """(z2 [n, m], h2 = relu(z2)) of z1 [n, r]."""
    z2 = slot.second(torch.relu(z1), slot.matrix_bias)
    return z2, torch.relu(z2)


def logits_of(z1: Tensor, slot: CPUSlot) -> Tensor:
    """Label logits f [n, K] of z1 = W1 x + b1 [n, r]."""
    return slot.head(hidden_layers(z1, slot)[1], slot.head_bias)


def readout_gradient(z1: Tensor, z2: Tensor, readout: Tensor, slot: CPUSlot) -> Tensor:
    """g1 [n, r] = 1[z1 > 0] * W2^T (1[z2 > 0] * u) for a readout u [n, m]; a ReLU at 0 passes nothing."""
    upper = torch.where(z2 > 0, readout, torch.zeros_like(z2))
    return torch.where(z1 > 0, slot.second_back(upper), torch.zeros_like(z1))


def logit_weights(logits: Tensor, settings: TokenSettings) -> Tensor:
    """dL/df [n, K] of every token's own loss, see `Loss`; logits [n, K]."""
    c = settings.label_weights[:, : logits.shape[1]].to(logits)
    if not c.numel():
        return c
    is_target = c < 0
    weight = c.abs()
    margin = settings.margin.to(logits)[:, None]
    # softmin: targets share weight 1 by w exp(-f); the largest exponent is taken out first.
    exponent = torch.where(is_target, weight.log() - logits, -torch.inf)
    highest = exponent.amax(1, keepdim=True)
    share = (exponent - torch.where(torch.isfinite(highest), highest, 0.0)).exp()
    total = share.sum(1, keepdim=True)
    softmin = torch.where(is_target, -share / torch.where(total > 0, total, 1.0), c)
    short = torch.where(is_target, logits < margin, logits > -margin)
    hinge = torch.where(short, c, torch.zeros_like(c))
    loss = settings.loss[:, None]
    return torch.where(loss == int(Loss.SOFTMIN), softmin, torch.where(loss == int(Loss.HINGE), hinge, c))


def is_reached(logits: Tensor, settings: TokenSettings) -> Tensor:
    """[n] bool: every target's logit is at least until_target and every avoid's at most until_avoid."""
    c = settings.label_weights[:, : logits.shape[1]]
    low = (c < 0) & (logits < settings.until_target[:, None].to(logits))
    high = (c > 0) & (logits > settings.until_avoid[:, None].to(logits))
    return settings.has_until & ~(low | high).any(1)


def gradient_program(p: Tensor, slot: CPUSlot, settings: TokenSettings) -> tuple[Tensor, Tensor]:
    """(s [n, r], steps [n] int32) of projections p = W1 x [n, r]; x_after = x - W1^T s."""
    z1 = p + slot.bias
    s = torch.zeros_like(p)
    mean_readout = settings.readout[:, : slot.second.weight.shape[0]].to(p)
    by_logits = settings.needs_logits
    is_mean = (settings.loss == int(Loss.MEAN))[:, None]
    normalised = settings.has(Flag.NORMALISED)
    any_normalised = bool(normalised.any())
    size = settings.faded_strength.to(p)
    alive = torch.ones_like(normalised)
    steps = torch.zeros_like(settings.num_steps)
    count = int(settings.num_steps.max()) if len(p) else 0
    for t in range(count):
        z2, h2 = hidden_layers(z1, slot)
        readout = mean_readout
        if by_logits:
            logits = slot.head(h2, slot.head_bias)
            alive = alive & ~is_reached(logits, settings)
            if not bool(alive.any()):
                break
            readout = torch.where(is_mean, mean_readout, slot.head_back(logit_weights(logits, settings)))
        g1 = readout_gradient(z1, z2, readout, slot)
        moving = alive & (t < settings.num_steps)
        now = torch.where(moving, size, torch.zeros_like(size))
        if any_normalised:
            length = (slot.gram(g1) * g1).sum(1).clamp_min(0).sqrt()
            unit = torch.where(length > 0, now / torch.where(length > 0, length, 1.0), torch.zeros_like(now))
            now = torch.where(normalised, unit, now)
        step = now[:, None] * g1
        s = s + step
        steps = steps + moving.to(steps.dtype)
        if t + 1 < count:
            z1 = z1 - slot.gram(step)
        size = size * settings.decay.to(p)
    return s, steps


def reflect_program(p: Tensor, slot: CPUSlot, settings: TokenSettings) -> Tensor:
    """s [n, r] = strength (x.v)/(v.v) g1 with x.v = p.g1 and v.v = g1^T G g1; 0 where v.v is not positive.

    p is W1 x without b1: using z1 = W1 x + b1 in x.v would be wrong. Source: Algorithm 2.
    """
    z1 = p + slot.bias
    readout = settings.readout[:, : slot.second.weight.shape[0]].to(p)
    g1 = readout_gradient(z1, hidden_layers(z1, slot)[0], readout, slot)
    square = (slot.gram(g1) * g1).sum(1, keepdim=True)
    product = (p * g1).sum(1, keepdim=True)
    factor = settings.strength.to(p)[:, None]
    defined = square > 0
    return torch.where(
        defined, factor * product / torch.where(defined, square, 1.0) * g1, torch.zeros_like(g1)
    )
