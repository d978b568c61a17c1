"""The programs without steps: affine maps with activations and gates, constants, and conditions."""

from __future__ import annotations

import torch
from torch import Tensor

from ksteer_kernels.hidden.finish import shut_out
from ksteer_kernels.hidden.gradient import logits_of
from ksteer_kernels.hidden.token_settings import TokenSettings
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.settings import Flag
from ksteer_kernels.weights import Activation


def activate(z: Tensor, slot: CPUSlot) -> Tensor:
    """q = act(z) [n, r], each unit with its own activation."""
    kind = slot.activation
    q = torch.where(kind == int(Activation.RELU), z.clamp_min(0), z)
    q = torch.where(kind == int(Activation.SIGMOID), torch.sigmoid(z), q)
    over = torch.where(z > slot.threshold, z, torch.zeros_like(z))
    return torch.where(kind == int(Activation.JUMPRELU), over, q)


def affine_program(p: Tensor, slot: CPUSlot, settings: TokenSettings) -> Tensor:
    """s [n, r] = gate * (scale * (matrix q) + readout), q = act(p + bias), gate = q[gate_unit] or 1."""
    width = p.shape[1]
    q = activate(p + slot.bias, slot)
    y = slot.second(q) if slot.second.weight.numel() else torch.zeros_like(q)
    s = settings.scale[:, :width].to(p) * y + settings.readout[:, :width].to(p)
    gated = slot.gate_unit >= 0
    return torch.where(gated, s * q[:, slot.gate_unit.clamp_min(0)], s)


def add_program(slot: CPUSlot, settings: TokenSettings) -> Tensor:
    """s [n, r] = -strength * readout: x moves by strength * readout @ basis, whatever x is."""
    width = slot.first.weight.shape[0]
    return -settings.strength[:, None] * settings.readout[:, :width]


def condition_program(
    p: Tensor, square: Tensor, slot: CPUSlot, settings: TokenSettings, is_open: Tensor | None
) -> Tensor:
    """[n] bool: whether the row's next stage is open for a token.

    Compared with margin, or for COSINE with margin * |x|: label_weights . logits of a slot with a head,
    readout . (p + bias) of another. square: [n], |x|^2. A GATED condition that is shut out stays shut: one
    condition and the next. is_open: see `shut_out`.
    """
    if slot.head.weight.numel():
        logits = logits_of(p + slot.bias, slot)
        value = (settings.label_weights[:, : logits.shape[1]].to(p) * logits).sum(1)
    else:
        value = (settings.readout[:, : p.shape[1]].to(p) * (p + slot.bias)).sum(1)
    margin = settings.margin.to(p)
    limit = torch.where(settings.has(Flag.COSINE), margin * square.to(p).sqrt(), margin)
    return (value > limit) & ~shut_out(settings, is_open)
