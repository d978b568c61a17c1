"""Steer: the whole edit of one stage of one decoder layer's output, in place."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ksteer_kernels.reports import ReportBuffers
from ksteer_kernels.settings import RowTables
from ksteer_kernels.steer.grouped import EditRecord, steer_groups_
from ksteer_kernels.steer.plan import PlannedGroup, plan_groups
from ksteer_kernels.tables import ProbeTables
from ksteer_kernels.workspace import Workspace

__all__ = ["EditRecord", "PlannedGroup", "check_shapes", "plan_groups", "steer_", "steer_groups_"]


def steer_(
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
    *,
    gain: Tensor | None = None,
    workspace: Workspace | None = None,
    reports: ReportBuffers | None = None,
    use_native: bool = True,
    backend: Literal["torch", "triton"],
) -> None:
    """Apply every stage of every row at one layer to its tokens, in order, in place on `hidden`.

    With B the basis of a token's slot, U = B M for the slot's metric M (B where it has none), and phi its
    program (K-Steering, arXiv 2505.24535, Algorithms 1 and 2; README.md has the other methods'):

        p = B x        s = phi(p)        x' = x - U^T s

    A token is active in a stage iff it has a row there, the row has a slot at this layer, its strength is not
    0 and, for GRADIENT, num_steps is above 0. Every other token keeps its bits.

    Args:
        hidden: [T, d], any float dtype; written to.
        residual: [T, d] or None; the residual stream is x = hidden + residual in float32.
        token_row: [S, >= T] int32 (or [>= T] for one stage), the request row of each token, -1: unsteered.
        probes: What is loaded, by slot.
        rows: What is asked for, by layer, stage and row.
        layer: Its place among the open layers of `rows`.
        gain: Like token_row, float32; what is left of a fading strength. None: all of it.
        workspace: Scratch of the "triton" backend, which needs it; the "torch" backend ignores it.
        reports: Where the "triton" backend writes what edits with Flag.REPORT did; the "torch" backend
            reports through `steer_groups_`.
        use_native: Let the "torch" backend run plain gradient steps in the native kernel, where there is one.
        backend: Plain torch, or Triton's kernels.

    Raises:
        ValueError: Shapes do not fit, the backend is unknown, or it lacks its workspace.
    """
    token_row = token_row.view(-1, token_row.shape[-1])
    gain = None if gain is None else gain.view(-1, gain.shape[-1])
    check_shapes(hidden, residual, token_row, probes, rows, gain)
    num_tokens = hidden.shape[0]
    if backend == "torch":
        is_open = None
        for stage in range(rows.num_stages):
            entry = layer * rows.num_stages + stage
            groups = plan_groups(
                token_row[stage], rows, entry, num_tokens, None if gain is None else gain[stage]
            )
            is_open = steer_groups_(hidden, residual, probes, groups, is_open, use_native=use_native)
    elif backend == "triton":
        from ksteer_kernels.steer import fused

        if workspace is None:
            raise ValueError("workspace: the triton backend needs one")
        fused.steer_(hidden, residual, token_row, gain, probes, rows, layer, workspace, reports)
    else:
        raise ValueError(f"backend: expected 'torch' or 'triton', got {backend!r}")


def check_shapes(
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    gain: Tensor | None = None,
) -> None:
    """Raise ValueError naming the argument that does not fit hidden [T, d] and the tables."""
    num_tokens, hidden_size = hidden.shape
    if hidden_size != probes.hidden_size:
        raise ValueError(f"hidden: size {hidden_size}, the tables were made for {probes.hidden_size}")
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"residual: shape {tuple(residual.shape)}, hidden has {tuple(hidden.shape)}")
    for name, tensor in (("token_row", token_row), ("gain", gain)):
        if tensor is not None and (tensor.shape[0] != rows.num_stages or tensor.shape[1] < num_tokens):
            raise ValueError(
                f"{name}: {tuple(tensor.shape)} for {num_tokens} tokens in {rows.num_stages} stages"
            )
