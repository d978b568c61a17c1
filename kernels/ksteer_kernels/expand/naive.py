"""Plain torch: turn a program's coefficients into the edit of the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.settings import Program, RowTables
from ksteer_kernels.tables import ProbeTables


def edit_limit(dtype: torch.dtype) -> float:
    """The largest magnitude an edit may take an entry of hidden to: 2**10 for float16, 2**24 for others.

    Far beyond any residual stream a model makes itself, and small enough that the layers above neither
    overflow nor divide infinities.
    """
    return 2.0**10 if dtype == torch.float16 else 2.0**24


def bounded_edit(old: Tensor, edit: Tensor) -> Tensor:
    """old - edit in float32, rounded to old's dtype, with every entry kept within `edit_limit`.

    old [n, d] any float dtype, edit [n, d] float32. An entry that was beyond the limit may stay there, and
    an entry whose edit is not finite keeps its bits. One request's strength must not put an infinity into
    a cache block that another request will reuse.
    """
    before = old.float()
    exact = before - edit
    limit = edit_limit(old.dtype)
    if float(exact.abs().amax()) <= limit:  # false for NaN, too
        return exact.to(old.dtype)
    bounded = torch.clamp(exact, before.clamp(max=-limit), before.clamp(min=limit))
    return torch.where(torch.isfinite(edit), bounded.to(old.dtype), old)


def expand_(
    hidden: Tensor,
    residual: Tensor | None,
    coefficients: Tensor,
    keep: Tensor,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    entry: int,
) -> None:
    """x' = keep * (x - U^T s), written into hidden in float32 and rounded once, for active tokens only.

    hidden, residual: [T, d], x = hidden + residual; coefficients s: [>= T, W], keep: [>= T] float32.
    The edit subtracted from hidden is keep * U^T s + (1 - keep) x. CONDITION edits nothing.
    """
    for group in active_groups(token_row, rows, entry, hidden.shape[0]):
        if group.program == Program.CONDITION:
            continue
        tokens = group.tokens
        written = probes.written(group.slot, torch.float32)
        kept = keep[tokens, None]
        x = hidden[tokens].float()
        if residual is not None:
            x = x + residual[tokens].float()
        edit = coefficients[tokens, : len(written)] @ written + 0.0
        edit = torch.where(kept == 1, edit, kept * edit + (1 - kept) * x)
        hidden[tokens] = bounded_edit(hidden[tokens], edit)
