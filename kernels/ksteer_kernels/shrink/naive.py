"""Plain torch: project the residual stream onto the basis of each token's slot."""

from __future__ import annotations

from torch import Tensor

from ksteer_kernels.groups import active_groups, needs_projection, needs_square
from ksteer_kernels.settings import RowTables
from ksteer_kernels.tables import ProbeTables
from ksteer_kernels.workspace import NUM_SPLITS


def split_bounds(hidden_size: int, block: int = 64) -> list[tuple[int, int]]:
    """The NUM_SPLITS fixed column ranges of hidden_size that are summed apart; late ones may be empty."""
    length = split_length(hidden_size, block)
    return [(min(i * length, hidden_size), min((i + 1) * length, hidden_size)) for i in range(NUM_SPLITS)]


def split_length(hidden_size: int, block: int = 64) -> int:
    """Columns per split, a multiple of block."""
    blocks = -(-hidden_size // block)
    return -(-blocks // NUM_SPLITS) * block


def shrink_(
    partial: Tensor,
    square: Tensor,
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    entry: int,
) -> None:
    """Write sums of x basis^T (no bias) for active tokens but plain ADD, and of |x|^2 where it is asked for.

    hidden, residual: [T, d]; x = hidden + residual in float32.
    partial: [S, T, W], square: [S, T] float32 with S = NUM_SPLITS, one sum per column range, or S = 1, their
    total in order. Other tokens' entries, and columns beyond the slot's width, are left as they are.
    """
    for group in active_groups(token_row, rows, entry, hidden.shape[0]):
        projected = needs_projection(rows, entry, group.rows)
        tokens, row = group.tokens[projected], group.rows[projected]
        squared = needs_square(rows, entry, row)
        x = hidden[tokens].float()
        if residual is not None:
            x = x + residual[tokens].float()
        width = probes.cpu_sizes[group.slot][0]
        basis = probes.basis[group.slot, :width].float()
        sums = [
            (x[:, a:b] @ basis[:, a:b].T, (x[:, a:b] ** 2).sum(1)) for a, b in split_bounds(hidden.shape[1])
        ]
        if partial.shape[0] == 1:
            total = sums[0]
            for part in sums[1:]:
                total = (total[0] + part[0], total[1] + part[1])
            sums = [total]
        for index, (projection, squares) in enumerate(sums):
            partial[index, tokens, :width] = projection
            square[index, tokens[squared]] = squares[squared]
