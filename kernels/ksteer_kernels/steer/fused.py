"""Triton: shrink, hidden program, expand, one stage after the other; safe to capture in a CUDA graph."""

from __future__ import annotations

from torch import Tensor

from ksteer_kernels.expand.fused import expand_
from ksteer_kernels.hidden.fused import hidden_
from ksteer_kernels.hidden.fused_report import report_
from ksteer_kernels.reports import ReportBuffers
from ksteer_kernels.settings import RowTables
from ksteer_kernels.shrink.fused import shrink_
from ksteer_kernels.tables import ProbeTables
from ksteer_kernels.workspace import Workspace


def steer_(
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    gain: Tensor | None,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
    workspace: Workspace,
    reports: ReportBuffers | None = None,
) -> None:
    """Same contract as `ksteer_kernels.steer.steer_`: four launches a stage, a fifth for reports, all fixed
    by hidden's shape.

    token_row: [S, >= T]. Raises ValueError when the workspace or the reports are too small, the row tables
    are of other sizes than the slots', or an argument's last dimension is not contiguous.
    """
    num_tokens = hidden.shape[0]
    if num_tokens == 0:
        return
    for tensor in (hidden, residual, token_row, gain):
        if tensor is not None and tensor.stride(1) != 1:
            raise ValueError("hidden, residual, token_row, gain: the last dimension must be contiguous")
    sizes = (rows.readout.shape[2], rows.scale.shape[2], rows.label_weights.shape[2])
    if sizes != (probes.max_width, probes.max_width, probes.max_labels):
        raise ValueError(f"rows: made for other sizes than the slots: {sizes}")
    workspace.require(num_tokens, probes.max_width, probes.max_labels)
    if reports is not None:
        reports.require(rows.slot.shape[0], num_tokens, probes.max_labels)
    partial, square = workspace.partial_sums(num_tokens), workspace.square_sums(num_tokens)
    for stage in range(rows.num_stages):
        entry = layer * rows.num_stages + stage
        row, left = token_row[stage], None if gain is None else gain[stage]
        shrink_(partial, square, hidden, residual, row, probes, rows, entry)
        hidden_(workspace, partial, square, row, left, probes, rows, entry)
        if reports is not None:
            report_(reports, workspace, partial, square, row, probes, rows, entry)
        expand_(hidden, residual, workspace.coefficients, workspace.keep, row, probes, rows, entry)
