"""Plain torch: turn hidden-space coefficients into the edit of the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.tables import ProbeTables, Program, RowTables


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
    coefficients: Tensor,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
) -> None:
    """hidden[t] <- hidden[t] - s[t] U in float32, rounded once to hidden's dtype, for active tokens only.

    hidden: [T, d]; coefficients s: [>= T, W] float32.
    U is w1[slot] for GRADIENT and REFLECT, vectors[slot] for ADD.
    """
    for group in active_groups(token_row, rows, layer, hidden.shape[0]):
        matrix = probes.vectors if group.program == Program.ADD else probes.w1
        directions = matrix[group.slot].float()
        s = coefficients[group.tokens, : directions.shape[0]]
        hidden[group.tokens] = bounded_edit(hidden[group.tokens], s @ directions)
