"""Triton: shrink, hidden program, expand, one after the other; safe to capture in a CUDA graph."""

from __future__ import annotations

from torch import Tensor

from ksteer_kernels.expand.fused import expand_
from ksteer_kernels.hidden.fused import hidden_
from ksteer_kernels.shrink.fused import shrink_
from ksteer_kernels.tables import ProbeTables, RowTables
from ksteer_kernels.workspace import Workspace


def steer_(
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
    workspace: Workspace,
) -> None:
    """Same contract as `ksteer_kernels.steer.steer_`: three launches fixed by hidden's shape, no host sync.

    Raises ValueError when the workspace is too small or an activation's last dimension is not contiguous.
    """
    num_tokens = hidden.shape[0]
    if num_tokens == 0:
        return
    if hidden.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError("hidden and residual: the last dimension must be contiguous")
    workspace.require(num_tokens, max(probes.max_width, probes.max_labels))
    partial = workspace.partial_sums(num_tokens)
    shrink_(partial, hidden, residual, token_row, probes, rows, layer)
    hidden_(workspace, partial, token_row, probes, rows, layer)
    expand_(hidden, workspace.coefficients, token_row, probes, rows, layer)
