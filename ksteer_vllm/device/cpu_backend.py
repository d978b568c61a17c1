"""Steering on CPUs: plans of groups of tokens, run in torch and the native kernel, reported as they run."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ksteer_kernels import EditRecord, PlannedGroup, plan_groups, steer_groups_
from ksteer_kernels.native import gradient_kernel
from ksteer_vllm.device.backend import Counters, StepTables

__all__ = ["CPUBackend"]


class CPUBackend:
    """Plans last while the same tokens meet the same rows, as in steady decoding.

    Args:
        tables: What the steps' tokens meet.
        counters: Updated with dropped edits as they happen.
        use_native: Run plain gradient steps in the native kernel, where one can be built.
    """

    name: Literal["torch"] = "torch"
    nbytes = 0

    def __init__(self, tables: StepTables, counters: Counters, *, use_native: bool) -> None:
        if use_native:
            gradient_kernel()  # built now, not at the first steered request
        self._tables = tables
        self._counters = counters
        self._use_native = use_native
        self._planned_for = (tables.token_row.clone(), tables.gain.clone())
        self._plans: dict[int, list[PlannedGroup]] = {}
        self._plans_by_cells: dict[tuple[int, ...], list[PlannedGroup]] = {}

    def begin_step(self, rows_changed: bool) -> None:
        row, gain = self._planned_for
        tables = self._tables
        if rows_changed or not (torch.equal(tables.token_row, row) and torch.equal(tables.gain, gain)):
            self._plans.clear()
            self._plans_by_cells.clear()
            row.copy_(tables.token_row)
            gain.copy_(tables.gain)

    def steer(self, hidden: Tensor, residual: Tensor | None, layer: int, index: int) -> None:
        tables = self._tables
        is_open = None
        for stage in range(tables.rows.num_stages):
            entry = index * tables.rows.num_stages + stage
            groups = self._plans.get(entry)
            if groups is None:
                groups = self._plans[entry] = self._plan(layer, stage, entry, hidden.shape[0])
            if groups:

                def record(done: EditRecord, stage: int = stage) -> None:
                    self._report(done, layer, stage)

                is_open = steer_groups_(
                    hidden,
                    residual,
                    tables.pool.tables,
                    groups,
                    is_open,
                    record,
                    use_native=self._use_native,
                    count_dropped=self._count_dropped,
                )
            else:
                is_open = None

    def collect_reports(self) -> None:
        """Records are in the store already: `steer` puts them there."""

    def update_counters(self) -> None:
        """Dropped edits are counted already: `steer` counts them."""

    def _plan(self, layer: int, stage: int, entry: int, num_tokens: int) -> list[PlannedGroup]:
        """Layers at which every request asks for the same share one plan."""
        tables = self._tables
        cells = [request.cells.get((layer, stage)) for request in tables.requests.values()]
        if not any(cells):
            return []
        key = (stage, *map(id, cells))
        groups = self._plans_by_cells.get(key)
        if groups is None:
            groups = plan_groups(tables.token_row[stage], tables.rows, entry, num_tokens, tables.gain[stage])
            self._plans_by_cells[key] = groups
        return groups

    def _report(self, done: EditRecord, layer: int, stage: int) -> None:
        """Hand what was done to reporting requests' tokens to the report store."""
        tables = self._tables
        if tables.reports is None or done.tokens.numel() == 0:
            return
        rows = tables.token_row[stage][done.tokens].tolist()
        edits = torch.tensor([tables.requests[row].edit_at[layer, stage] for row in rows])
        tables.reports.record(
            layer,
            edits,
            done.tokens,
            done.shift.float(),
            done.steps.int(),
            None if done.before is None else torch.sigmoid(done.before),
            None if done.after is None else torch.sigmoid(done.after),
            tables.pool.digest_of_slot[done.slot],
        )

    def _count_dropped(self, count: int) -> None:
        self._counters.set_dropped(self._counters.dropped_edits + count)
