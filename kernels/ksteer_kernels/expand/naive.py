"""Plain torch: turn hidden-space coefficients into the edit of the residual stream."""

from __future__ import annotations

from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.tables import ProbeTables, Program, RowTables


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
        edited = hidden[group.tokens].float() - s @ directions
        hidden[group.tokens] = edited.to(hidden.dtype)
