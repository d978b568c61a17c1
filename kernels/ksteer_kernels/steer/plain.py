"""The edits nearly every request asks for, with as few calls as they can be done in on a CPU.

Gradient steps of the mean loss, and constants; no cap, condition or report. A call of a few microseconds
counts here: one layer of a small model takes some hundred. Gradient steps of few tokens run in the native
kernel where there is one, all else in torch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ksteer_kernels import native
from ksteer_kernels.expand.naive import bounded_edit, edit_limit
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.settings import Program
from ksteer_kernels.steer.plan import PlannedGroup

_pass_where_positive = torch.ops.aten.threshold_backward.grad_input


def plain_edit_(
    hidden: Tensor, residual: Tensor | None, group: PlannedGroup, slot: CPUSlot, use_native: bool
) -> int:
    """Edit the group's tokens of hidden [T, d] in place; float32 throughout, one rounding at the end.

    Returns how many tokens' edits were dropped.
    """
    if use_native and group.program == Program.GRADIENT:
        dropped = native.edit_(hidden, residual, group, slot)
        if dropped is not None:
            return dropped
    old = take_tokens(hidden, group)
    before = old.float()
    if group.program == Program.ADD:
        s, is_sound = _narrow(group.scaled[0], slot.bias.shape[0]), True
    else:
        x = before if residual is None else torch.add(before, take_tokens(residual, group))
        is_sound = math.isfinite(float(x.sum()))  # an overflow of the sum only costs time
        s = gradient_steps(x, group, slot)
    after = slot.first_back.subtract_from(before, s)
    if is_sound and float(after.abs().amax()) <= edit_limit(old.dtype):  # false for NaN, too
        _put(hidden, group, after)
        return 0
    num_dropped = 0
    if group.program == Program.GRADIENT:  # a token that is not finite keeps its bits
        is_finite = torch.isfinite(x).all(1, keepdim=True) & torch.isfinite(s).all(1, keepdim=True)
        num_dropped = int((~is_finite).sum())
        s = torch.where(is_finite, s, 0.0)
    subtract_(hidden, group, slot.first_back(s))
    return num_dropped


def gradient_steps(x: Tensor, group: PlannedGroup, slot: CPUSlot) -> Tensor:
    """s [n, r] of all plain gradient steps of x [n, d]: x_after = x - U^T s.

    The step size multiplies the readout: the hidden gradient is linear in it, so no other place needs it.
    """
    last = len(group.scaled) - 1
    if last == 0:  # relu(z1) > 0 exactly where z1 > 0: one step needs no z1
        h1 = slot.first.relu(x, slot.bias)
        upper = slot.second(h1, slot.matrix_bias)
        _pass_where_positive(_narrow(group.scaled[0], upper.shape[1]), upper, 0, grad_input=upper)
        step = slot.second_back(upper)
        return _pass_where_positive(step, h1, 0, grad_input=step)
    z1 = slot.first(x, slot.bias)
    h1, step = torch.empty_like(z1), torch.empty_like(z1)
    upper = z1.new_empty(len(x), slot.matrix_bias.shape[0])
    total = step
    for t, readout in enumerate(group.scaled):
        scaled = _narrow(readout, upper.shape[1])
        torch.clamp_min(z1, 0, out=h1)
        upper = slot.second(h1, slot.matrix_bias, out=upper)
        _pass_where_positive(scaled, upper, 0, grad_input=upper)
        step = slot.second_back(upper, out=step)
        _pass_where_positive(step, z1, 0, grad_input=step)
        if t == 0:
            total = step.clone()
        else:
            total.add_(step)
        if t < last:
            slot.gram.subtract_from_(z1, step)
    return total


def _narrow(table: Tensor, width: int) -> Tensor:
    return table if table.shape[1] == width else table[:, :width]


def take_tokens(source: Tensor, group: PlannedGroup) -> Tensor:
    """The group's rows of source [T, d]; a view where they are consecutive."""
    if group.span is not None:
        return source[group.span[0] : group.span[1]]
    return source.index_select(0, group.tokens)


def subtract_(hidden: Tensor, group: PlannedGroup, edit: Tensor) -> None:
    """hidden <- hidden - edit for the group's tokens; edit [n, d] float32. Bounded, see `bounded_edit`."""
    _put(hidden, group, bounded_edit(take_tokens(hidden, group), edit))


def _put(hidden: Tensor, group: PlannedGroup, after: Tensor) -> None:
    if group.span is None:
        hidden.index_copy_(0, group.tokens, after.to(hidden.dtype))
    else:
        hidden[group.span[0] : group.span[1]].copy_(after)
