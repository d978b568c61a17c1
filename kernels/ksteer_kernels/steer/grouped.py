"""The CPU path: a few large torch calls per group of tokens that share a probe slot and a program.

A plan holds everything that does not depend on the activations; make it once per step and layer and pass it
to `steer_`. It copies the rows' settings, so it is stale as soon as token_row or the row tables change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ksteer_kernels.expand.naive import bounded_edit
from ksteer_kernels.groups import active_groups
from ksteer_kernels.hidden.naive import reflect_program, step_sizes
from ksteer_kernels.host import HostProbe
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
            coefficients = group.readout[:, :count] * group.strength[:, None]
            _subtract_(hidden, group, torch.mm(-coefficients, probes.vectors[group.slot, :count].float()))
            continue
        h1, h2 = probes.widths[group.slot]
        if h1 == 0 or h2 == 0:
            continue
        probe = probes.host_probe(group.slot)
        x = _residual_stream(hidden, residual, group)
        readout = group.readout[:, :h2]
        if group.program == Program.REFLECT:
            s = reflect_program(
                probe.first(x),
                probe.b1,
                probe.second.weight,
                probe.b2,
                probe.gram.weight,
                readout,
                group.strength,
            )
        else:
            s = _gradient_steps(probe.first(x, probe.b1), readout, probe, group.sizes)
        _subtract_(hidden, group, probe.first_back(s))


def _gradient_steps(z1: Tensor, readout: Tensor, probe: HostProbe, sizes: tuple[Tensor, ...]) -> Tensor:
    """s [n, h1] of all gradient steps; z1 = W1 x + b1 [n, h1] is overwritten.

    The step size multiplies the readout: the hidden gradient is linear in it, so no other place needs it.
    """
    h1 = torch.empty_like(z1)
    upper = torch.empty_like(readout, memory_format=torch.contiguous_format)
    step = torch.empty_like(z1)
    total = step
    scaled = readout
    last = len(sizes) - 1
    for t, size in enumerate(sizes):
        if t == 0 or size is not sizes[t - 1]:
            scaled = readout * size
        torch.clamp_min(z1, 0, out=h1)
        upper = probe.second(h1, probe.b2, out=upper)
        _pass_where_positive(scaled, upper, 0, grad_input=upper)
        step = probe.second_back(upper, out=step)
        _pass_where_positive(step, z1, 0, grad_input=step)
        if t == 0:
            total = step.clone() if last else step
        else:
            total.add_(step)
        if t < last:
            probe.gram.subtract_from_(z1, step)
    return total


def _residual_stream(hidden: Tensor, residual: Tensor | None, group: PlannedGroup) -> Tensor:
    """x = hidden + residual of the group's tokens, [n, d] float32."""

    def part(source: Tensor) -> Tensor:
        if group.span is not None:
            return source[group.span[0] : group.span[1]].float()
        return source.index_select(0, group.tokens).float()

    return part(hidden) if residual is None else part(hidden) + part(residual)


def _subtract_(hidden: Tensor, group: PlannedGroup, edit: Tensor) -> None:
    """hidden <- hidden - edit for the group's tokens; edit [n, d] float32. Bounded, see `bounded_edit`."""
    if group.span is None:
        old = hidden.index_select(0, group.tokens)
        hidden.index_copy_(0, group.tokens, bounded_edit(old, edit))
        return
    view = hidden[group.span[0] : group.span[1]]
    view.copy_(bounded_edit(view, edit))
