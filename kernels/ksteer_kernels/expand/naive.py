"""Plain torch: turn hidden-space coefficients into the edit of the residual stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.tables import ProbeTables, Program, RowTables


def finite_edit(old: Tensor, edit: Tensor) -> Tensor:
    """old - edit in float32, rounded to old's dtype, without ever making a value that is not finite.

    old [n, d] any float dtype, edit [n, d] float32. A token whose edit is not finite keeps its bits, and so
    does an element that would overflow old's dtype: one request's strength must not put an infinity into a
    cache block that another request will reuse.
    """
    exact = old.float() - edit
    new = exact.to(old.dtype)
    if old.dtype != torch.float16 and math.isfinite(float(exact.sum())):
        return new
    written = torch.isfinite(edit).all(1, keepdim=True) & torch.isfinite(new)
    return torch.where(written, new, old)


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
        hidden[group.tokens] = finite_edit(hidden[group.tokens], s @ directions)
