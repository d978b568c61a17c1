"""Steering on GPUs: Triton kernels whose launches follow from shapes alone, so CUDA graphs may hold them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ksteer_kernels import Workspace, steer_
from ksteer_vllm.device.backend import Counters, StepTables
from ksteer_vllm.device.report_buffers import DeviceReports

__all__ = ["GPUBackend"]


class GPUBackend:
    """Scratch memory, report buffers and the count of dropped edits all stay on the device.

    Under Triton's interpreter the device may be a CPU.

    Args:
        tables: What the steps' tokens meet; the largest step fixes the size of the scratch memory.
        counters: Updated with the dropped edits on request.
    """

    name: Literal["triton"] = "triton"

    def __init__(self, tables: StepTables, counters: Counters) -> None:
        probes, max_tokens = tables.pool.tables, tables.token_row.shape[1]
        self._tables = tables
        self._counters = counters
        self._workspace = Workspace.allocate(
            max_tokens, probes.max_width, tables.token_row.device, probes.max_labels
        )
        self._reports = None if tables.reports is None else DeviceReports(tables, tables.reports)
        self._report_buffers = None if self._reports is None else self._reports.buffers

    @property
    def nbytes(self) -> int:
        buffers = self._report_buffers
        return self._workspace.nbytes + (0 if buffers is None else buffers.nbytes)

    def begin_step(self, rows_changed: bool) -> None:
        if self._reports is not None:
            self._reports.begin_step()

    def steer(self, hidden: Tensor, residual: Tensor | None, layer: int, index: int) -> None:
        tables = self._tables
        steer_(
            hidden,
            residual,
            tables.token_row,
            tables.pool.tables,
            tables.rows,
            index,
            gain=tables.gain,
            workspace=self._workspace,
            reports=self._report_buffers,
            backend="triton",
        )

    def collect_reports(self) -> None:
        if self._reports is not None:
            self._reports.collect()

    def update_counters(self) -> None:
        self._counters.set_dropped(int(self._workspace.dropped))
