"""Steer: the whole edit of one decoder layer's output, in place."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ksteer_kernels.steer.grouped import PlannedGroup, plan_groups, steer_groups_
from ksteer_kernels.tables import ProbeTables, RowTables
from ksteer_kernels.workspace import Workspace

__all__ = ["PlannedGroup", "plan_groups", "steer_"]


def steer_(
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
    *,
    workspace: Workspace | None = None,
    groups: list[PlannedGroup] | None = None,
    backend: Literal["torch", "triton"],
) -> None:
    """Apply every row's program to its tokens, in place on `hidden`.

    hidden: [T, d], any float dtype; only active tokens change, every other token keeps its bits.
    residual: [T, d] or None, read only; the residual stream is x = hidden + residual in float32.
    token_row: [>= T] int32, request row of each token, -1 for an unsteered one.
    layer: open layer index into the row tables.
    workspace: scratch of the "triton" backend, which needs it; the "torch" backend ignores it.
    groups: `plan_groups(token_row, rows, layer, T)` made earlier in the same step; the "torch" backend makes
        its own if None, the "triton" backend ignores it.
    A token is active iff it has a row, the row has a slot at this layer, its strength is not 0 and, for
    GRADIENT, num_steps is above 0. Raises ValueError on shapes that do not fit or an unknown backend.
    Source: K-Steering, arXiv 2505.24535, Algorithms 1 and 2.
    """
    num_tokens, hidden_size = hidden.shape
    if hidden_size != probes.hidden_size:
        raise ValueError(f"hidden: size {hidden_size}, the tables were made for {probes.hidden_size}")
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"residual: shape {tuple(residual.shape)}, hidden has {tuple(hidden.shape)}")
    if token_row.shape[0] < num_tokens:
        raise ValueError(f"token_row: {token_row.shape[0]} entries for {num_tokens} tokens")
    if backend == "torch":
        if groups is None:
            groups = plan_groups(token_row, rows, layer, num_tokens)
        steer_groups_(hidden, residual, probes, groups)
    elif backend == "triton":
        from ksteer_kernels.steer import fused

        if workspace is None:
            raise ValueError("workspace: the triton backend needs one")
        fused.steer_(hidden, residual, token_row, probes, rows, layer, workspace)
    else:
        raise ValueError(f"backend: expected 'torch' or 'triton', got {backend!r}")
