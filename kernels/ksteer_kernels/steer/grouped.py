"""The CPU path: a few large torch calls per group of tokens that share a probe slot and a program.

A plan holds everything that does not depend on the activations; make it once per step and layer and pass it
to `steer_`. It copies the rows' settings, so it is stale as soon as token_row or the row tables change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.hidden.naive import reflect_program, step_sizes
from ksteer_kernels.tables import ProbeTables, Program, RowTables

_pass_where_positive = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True)
class PlannedGroup:
    """One group of tokens, ready to run.

    tokens: [n] int64 token indices, ascending; span: (start, stop) if they are consecutive, else None.
    readout: [n, W] float32; strength: [n] float32.
    sizes: one [n, 1] float32 tensor per gradient step; equal consecutive steps share one tensor. Empty for
        the other programs.
    """

    slot: int
    program: Program
    tokens: Tensor
    span: tuple[int, int] | None
    readout: Tensor
    strength: Tensor
    sizes: tuple[Tensor, ...]


def plan_groups(token_row: Tensor, rows: RowTables, layer: int, num_tokens: int) -> list[PlannedGroup]:
    """Group the active tokens among the first num_tokens for one layer; empty when nobody is steered.

    token_row: [>= num_tokens] int32. Reads the tables on the host.
    """
    planned = []
    for group in active_groups(token_row, rows, layer, num_tokens):
        row = group.rows
        strength = rows.strength[layer, row]
        sizes: tuple[Tensor, ...] = ()
        if group.program == Program.GRADIENT:
            table = step_sizes(strength, rows.decay[layer, row], rows.num_steps[layer, row])[..., None]
            repeats = (table[1:] == table[:-1]).all(1).squeeze(-1).tolist()
            steps = [table[0]]
            for t, repeat in enumerate(repeats, start=1):
                steps.append(steps[-1] if repeat else table[t])
            sizes = tuple(steps)
        first, last = int(group.tokens[0]), int(group.tokens[-1])
        span = (first, last + 1) if last + 1 - first == group.tokens.numel() else None
        readout = rows.readout[layer, row]
        planned.append(PlannedGroup(group.slot, group.program, group.tokens, span, readout, strength, sizes))
    return planned


def steer_groups_(
    hidden: Tensor, residual: Tensor | None, probes: ProbeTables, groups: list[PlannedGroup]
) -> None:
    """Edit the groups' tokens of hidden [T, d] in place; float32 throughout, one rounding at the end."""
    for group in groups:
        if group.program == Program.ADD:
            count = probes.num_labels[group.slot]
            coefficients = group.readout[:, :count] * -group.strength[:, None]
            _expand_(hidden, group, coefficients, probes.vectors[group.slot, :count])
            continue
        h1, h2 = probes.widths[group.slot]
        if h1 == 0 or h2 == 0:
            continue
        w1 = probes.w1[group.slot, :h1].float()
        b1, b2 = probes.b1[group.slot, :h1], probes.b2[group.slot, :h2]
        w2, gram = probes.w2[group.slot, :h2, :h1], probes.gram[group.slot, :h1, :h1]
        readout = group.readout[:, :h2]
        x = _residual_stream(hidden, residual, group)
        if group.program == Program.REFLECT:
            s = reflect_program(x @ w1.T, b1, w2, b2, gram, readout, group.strength)
        else:
            s = _gradient_steps(torch.addmm(b1, x, w1.T), readout, w2, b2, gram, group.sizes)
        _expand_(hidden, group, s, w1)


def _gradient_steps(
    z1: Tensor, readout: Tensor, w2: Tensor, b2: Tensor, gram: Tensor, sizes: tuple[Tensor, ...]
) -> Tensor:
    """s [n, h1] of all gradient steps; z1 = W1 x + b1 [n, h1] is overwritten.

    The step size multiplies the readout: the hidden gradient is linear in it, so no other place needs it.
    """
    h1 = torch.empty_like(z1)
    upper = torch.empty_like(readout, memory_format=torch.contiguous_format)
    step = torch.empty_like(z1)
    total: Tensor | None = None
    scaled = readout
    last = len(sizes) - 1
    for t, size in enumerate(sizes):
        if t == 0 or size is not sizes[t - 1]:
            scaled = readout * size
        torch.clamp_min(z1, 0, out=h1)
        torch.addmm(b2, h1, w2.T, out=upper)
        _pass_where_positive(scaled, upper, 0, grad_input=upper)
        torch.mm(upper, w2, out=step)
        _pass_where_positive(step, z1, 0, grad_input=step)
        if t < last:
            total = step.clone() if total is None else total.add_(step)
            z1.addmm_(step, gram, alpha=-1)
    return step if total is None else total.add_(step)


def _residual_stream(hidden: Tensor, residual: Tensor | None, group: PlannedGroup) -> Tensor:
    """x = hidden + residual of the group's tokens, [n, d] float32."""

    def part(source: Tensor) -> Tensor:
        if group.span is not None:
            return source[group.span[0] : group.span[1]].float()
        return source.index_select(0, group.tokens).float()

    return part(hidden) if residual is None else part(hidden) + part(residual)


def _expand_(hidden: Tensor, group: PlannedGroup, coefficients: Tensor, directions: Tensor) -> None:
    """hidden <- hidden - coefficients @ directions for the group's tokens."""
    directions = directions.float()
    if group.span is None:
        edited = torch.addmm(hidden.index_select(0, group.tokens).float(), coefficients, directions, alpha=-1)
        hidden.index_copy_(0, group.tokens, edited.to(hidden.dtype))
        return
    view = hidden[group.span[0] : group.span[1]]
    if view.dtype == torch.float32:
        view.addmm_(coefficients, directions, alpha=-1)
    else:
        view.copy_(torch.addmm(view.float(), coefficients, directions, alpha=-1))
