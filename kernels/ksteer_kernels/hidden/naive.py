"""Plain torch: every program of a stage, over a workspace. The reference of the Triton kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.hidden.affine import add_program, affine_program, condition_program
from ksteer_kernels.hidden.finish import finish, shut_out
from ksteer_kernels.hidden.gradient import gradient_program, reflect_program
from ksteer_kernels.hidden.token_settings import TokenSettings
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.settings import Program, RowTables
from ksteer_kernels.tables import ProbeTables
from ksteer_kernels.workspace import DROPPED, Workspace


def run_program(
    program: Program, p: Tensor | None, slot: CPUSlot, settings: TokenSettings
) -> tuple[Tensor, Tensor | None]:
    """(s [n, r], steps [n] int32 or None) of one group; p = basis x [n, r], which ADD does not need."""
    if program == Program.ADD:
        return add_program(slot, settings), None
    assert p is not None
    if program == Program.GRADIENT:
        return gradient_program(p, slot, settings)
    if program == Program.REFLECT:
        return reflect_program(p, slot, settings), None
    return affine_program(p, slot, settings), None


def steps_taken(
    steps: Tensor | None, settings: TokenSettings, is_open: Tensor | None, dropped: Tensor
) -> Tensor:
    """[n] int32: gradient steps, 0 for a token that a condition shut out, -1 for a program without steps,
    DROPPED for a token whose edit was dropped ([n] bool)."""
    taken = torch.full_like(settings.num_steps, -1) if steps is None else steps
    taken = torch.where(shut_out(settings, is_open), torch.zeros_like(taken), taken)
    return torch.where(dropped, torch.full_like(taken, DROPPED), taken)


def hidden_(
    workspace: Workspace,
    partial: Tensor,
    square: Tensor,
    token_row: Tensor,
    gain: Tensor | None,
    probes: ProbeTables,
    rows: RowTables,
    entry: int,
) -> None:
    """Run every active token's program; writes workspace.coefficients, keep, steps, is_open, dropped.

    partial: [S, T, W], square: [S, T] float32, partial sums of shrink, added in order. gain: [>= T] or None.
    Written are the first r entries of an active token's coefficients. is_open is what the stage before wrote,
    and in the first stage nothing is open; tokens of no condition are shut afterwards.
    """
    num_tokens = partial.shape[1]
    is_open = workspace.is_open[:num_tokens] != 0
    opened = torch.zeros_like(is_open)
    for group in active_groups(token_row, rows, entry, num_tokens):
        if not probes.cpu_sizes[group.slot][0]:
            workspace.keep[group.tokens] = 1.0
            continue
        tokens, slot = group.tokens, probes.slot_as(group.slot, torch.float32)
        settings = TokenSettings.of(rows, entry, group.rows, None if gain is None else gain[tokens])
        width = slot.first.weight.shape[0]
        p, x_square = partial[0, tokens, :width], square[0, tokens]
        for part in range(1, partial.shape[0]):
            p = p + partial[part, tokens, :width]
            x_square = x_square + square[part, tokens]
        before = is_open[tokens] if entry % rows.num_stages else None
        if group.program == Program.CONDITION:
            opened[tokens] = condition_program(p, x_square, slot, settings, before)
            continue
        s, steps = run_program(group.program, p, slot, settings)
        s, keep, dropped = finish(s, p, x_square, slot, group.program, settings, before)
        workspace.dropped += dropped.sum()
        workspace.coefficients[tokens, :width] = s
        workspace.keep[tokens] = keep
        workspace.steps[tokens] = steps_taken(steps, settings, before, dropped)
    workspace.is_open[:num_tokens] = opened.to(workspace.is_open.dtype)
