"""Plain torch: project the residual stream onto the first layer of each token's probe."""

from __future__ import annotations

from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.tables import ProbeTables, Program, RowTables
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
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
) -> None:
    """Write sums of x W1^T (no bias) for active GRADIENT and REFLECT tokens.

    hidden, residual: [T, d]; x = hidden + residual in float32.
    partial: [S, T, W] float32 with S = NUM_SPLITS, one sum per column range, or S = 1, their total in order.
    Other tokens' and columns' entries are left as they are.
    """
    width = probes.max_width
    for group in active_groups(token_row, rows, layer, hidden.shape[0]):
        if group.program == Program.ADD:
            continue
        x = hidden[group.tokens].float()
        if residual is not None:
            x = x + residual[group.tokens].float()
        w1 = probes.w1[group.slot].float()
        sums = [x[:, a:b] @ w1[:, a:b].T for a, b in split_bounds(hidden.shape[1])]
        if partial.shape[0] == 1:
            total = sums[0]
            for part in sums[1:]:
                total = total + part
            sums = [total]
        for index, part in enumerate(sums):
            partial[index, group.tokens, :width] = part
