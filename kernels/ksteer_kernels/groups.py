"""Which tokens an entry edits, and which of them together. On the CPU: waits for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ksteer_kernels.settings import Flag, Program, RowTables


@dataclass(frozen=True)
class TokenGroup:
    """Tokens that share a slot and a program.

    tokens: [n] int64 ascending token indices; rows: [n] int64 their request rows.
    """

    slot: int
    program: Program
    tokens: Tensor
    rows: Tensor


def needs_square(rows: RowTables, entry: int, row: Tensor) -> Tensor:
    """[n] bool: whether anything asks for |x|^2 of tokens with these rows [n]."""
    wanted = Flag.PRESERVE_NORM | Flag.REPORT | Flag.COSINE
    return torch.isfinite(rows.cap[entry, row]) | ((rows.flags[entry, row] & int(wanted)) != 0)


def needs_projection(rows: RowTables, entry: int, row: Tensor) -> Tensor:
    """[n] bool: whether anything asks for basis x of tokens with these rows [n]; a plain ADD does not."""
    return (rows.program[entry, row] != Program.ADD) | needs_square(rows, entry, row)


def active_groups(token_row: Tensor, rows: RowTables, entry: int, num_tokens: int) -> list[TokenGroup]:
    """Group the active tokens among the first num_tokens by (slot, program).

    A token is active iff its token row is not -1, the row has a slot at this entry, its strength is not 0
    and, for GRADIENT, num_steps is above 0. Everything else must keep its very bits.
    """
    tokens = (token_row[:num_tokens] >= 0).nonzero().squeeze(1)
    if tokens.numel() == 0:
        return []
    row = token_row[tokens].long()
    slot, program = rows.slot[entry, row], rows.program[entry, row]
    working = (program != Program.GRADIENT) | (rows.num_steps[entry, row] > 0)
    active = (slot >= 0) & (rows.strength[entry, row] != 0) & working
    key = torch.where(active, slot * len(Program) + program, -1)
    values = torch.unique(key).tolist()
    groups = []
    for value in values:
        if value < 0:
            continue
        slot_index, program_index = divmod(value, len(Program))
        member = slice(None) if len(values) == 1 else key == value
        groups.append(TokenGroup(slot_index, Program(program_index), tokens[member], row[member]))
    return groups
