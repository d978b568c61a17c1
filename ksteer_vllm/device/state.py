"""One engine's steering state: device tables, the rows of running requests, and the current step.

Takes arrays, not vLLM objects; `ksteer_vllm.host` feeds it from either model runner.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ksteer_kernels import (
    EditRecord,
    PlannedGroup,
    RowTables,
    Workspace,
    plan_groups,
    steer_,
    steer_groups_,
    token_rows_,
)
from ksteer_kernels.native import gradient_kernel
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.device.capture import Capture
from ksteer_vllm.device.pool import ProbePool, RequestRows
from ksteer_vllm.device.report_buffers import DeviceReports
from ksteer_vllm.device.report_store import ReportStore
from ksteer_vllm.device.row_writer import RowWriter
from ksteer_vllm.errors import ConfigError
from ksteer_vllm.telemetry.events import emit

__all__ = ["Counters", "SteeringState"]


@dataclass
class Counters:
    """Host time spent in this plugin, in nanoseconds, and what it was spent on.

    dropped_edits: a token's edits at a layer that were left out because its activations or the edit were not
    finite; on a GPU they are counted there, see `SteeringState.snapshot`.
    """

    steps: int = 0
    steered_steps: int = 0
    prepare_ns: int = 0
    op_calls: int = 0
    op_ns: int = 0
    requests: int = 0
    dropped_edits: int = 0

    def snapshot(self) -> dict[str, int]:
        return asdict(self)


class SteeringState:
    """Owns everything steering needs on one worker; built once, when the model is loaded.

    Persistent buffers only: captured CUDA graphs keep their addresses. max_rows: requests that can run
    at once; max_tokens: tokens of the largest step, padding included.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        hidden_size: int,
        weight_dtype: torch.dtype,
        device: torch.device,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        assert isinstance(config.layers, tuple)
        self.config = config
        self.device = device
        self.backend: Literal["torch", "triton"]
        if config.kernels == "auto":
            self.backend = "triton" if device.type == "cuda" else "torch"
        else:
            self.backend = config.kernels
        if self.backend == "torch" and device.type != "cpu":
            raise ConfigError("ksteer option kernels: torch runs on CPUs only, this engine runs on a GPU")
        self._use_native = config.kernels == "auto" and device.type == "cpu"
        if self._use_native:
            gradient_kernel()  # built now, not at the first steered request
        self.layer_index = {layer: index for index, layer in enumerate(config.layers)}
        self.pool = ProbePool(config, hidden_size=hidden_size, weight_dtype=weight_dtype, device=device)
        tables = self.pool.tables
        self.rows = RowTables.allocate(
            max(len(config.layers), 1),
            max_rows,
            tables.max_width,
            tables.max_labels,
            device,
            config.max_stages,
        )
        self.workspace = (
            Workspace.allocate(max_tokens, tables.max_width, device, tables.max_labels)
            if self.backend == "triton"
            else None
        )
        shape = (config.max_stages, max_tokens)
        self.token_row = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.gain = torch.ones(shape, device=device)
        self._planned_for = (self.token_row.clone(), self.gain.clone())
        self.capture = Capture(config.capture.layers) if config.capture is not None else None
        self.reports = ReportStore() if config.reports else None
        self._device_reports = (
            DeviceReports(self.rows, tables, self.layer_index, self.pool.digest_of_slot, max_tokens)
            if config.reports and self.backend == "triton"
            else None
        )
        self.counters = Counters()
        self._announced_dropped = 0
        self.active = False
        self._writer = RowWriter(self.rows, self.layer_index, device)
        self._requests: dict[int, RequestRows] = {}
        self._token_row_dirty = False
        self._plans: dict[int, list[PlannedGroup]] = {}
        self._plans_by_cells: dict[tuple[int, ...], list[PlannedGroup]] = {}

    @property
    def num_steered(self) -> int:
        """How many rows hold a steered request."""
        return len(self._requests)

    @property
    def nbytes(self) -> int:
        """Device bytes held by the tables, the scratch memory and the report buffers."""
        parts = (self.pool.tables, self.rows, self.workspace)
        held = sum(part.nbytes for part in parts if part is not None)
        return held + (0 if self._device_reports is None else self._device_reports.buffers.nbytes)

    def snapshot(self) -> dict[str, int]:
        """The counters; waits for a device that counts."""
        counts = self.counters.snapshot()
        if self.workspace is not None:
            counts["dropped_edits"] = int(self.workspace.dropped)
            self._announce_dropped(counts["dropped_edits"])
        return counts

    def _count_dropped(self, count: int) -> None:
        self.counters.dropped_edits += count
        self._announce_dropped(self.counters.dropped_edits)

    def _announce_dropped(self, total: int) -> None:
        if total > self._announced_dropped:
            self._announced_dropped = total
            emit("dropped_edits", total=total)

    def set_row(self, row: int, canonical: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Give a row to a request: its canonical spec and what admission recorded of it.

        Reaches the device with the next `begin_step`, together with every other change since the last.
        """
        report = bool(record.get("report"))
        request = self.pool.request_rows(canonical, record["edits"], report)
        self._writer.set(row, request)
        self._requests[row] = request
        self.counters.requests += 1

    def clear_row(self, row: int) -> None:
        """The row's request has left. Closing its windows is enough: no token can name the row."""
        if self._requests.pop(row, None) is not None:
            self._writer.clear(row)

    def begin_step(
        self, request_rows: Tensor, query_start_loc: Tensor, positions: Tensor, num_tokens: int
    ) -> None:
        """Point every token of the coming forward pass at its row.

        request_rows [num_reqs] int (-1: unsteered), query_start_loc [num_reqs + 1] int32,
        positions [>= num_tokens] int64: device tensors, read without a host synchronisation.
        """
        self.collect_reports()
        rows_changed = self._writer.write()
        self.active = True
        self._token_row_dirty = True
        self.counters.steered_steps += 1
        token_rows_(
            self.token_row,
            self.gain,
            positions,
            query_start_loc,
            request_rows,
            self.rows,
            num_tokens,
            self.backend,
        )
        if self._device_reports is not None:
            self._device_reports.begin_step(self._requests)
        if self.backend == "torch":
            row, gain = self._planned_for
            if rows_changed or not (torch.equal(self.token_row, row) and torch.equal(self.gain, gain)):
                # While the same tokens meet the same rows, as in steady decoding, the plans stay.
                self._plans.clear()
                self._plans_by_cells.clear()
                row.copy_(self.token_row)
                gain.copy_(self.gain)

    def end_step(self) -> None:
        """Nobody is steered from here on, until the next `begin_step`: idle steps and dummy runs."""
        self.active = False
        self.collect_reports()
        if self.capture is not None:
            self.capture.end_step()
        if self.reports is not None:
            self.reports.end_step()
        if self._token_row_dirty:
            self.token_row.fill_(-1)
            self._token_row_dirty = False

    def collect_reports(self) -> None:
        """Bring the reports of the step before to the host, where a device wrote them."""
        if self._device_reports is not None and self.reports is not None:
            self._device_reports.collect(self.reports, self.token_row)

    def at_layer(self, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
        """The decoder layer's step: record and edit the residual stream hidden + residual, in `hidden`.

        Under CUDA graphs this runs at capture only; on replay the device tables decide who is steered.
        """
        if self.capture is not None:
            self.capture.record(hidden, residual, layer)
        if not self.active and not hidden.is_cuda:  # on a GPU the device tables decide, and graphs replay
            return
        index = self.layer_index.get(layer)
        if index is None:
            return
        started = time.perf_counter_ns()
        if self.backend == "torch":
            self._steer_in_groups(hidden, residual, layer, index)
        else:
            steer_(
                hidden,
                residual,
                self.token_row,
                self.pool.tables,
                self.rows,
                index,
                gain=self.gain,
                workspace=self.workspace,
                reports=None if self._device_reports is None else self._device_reports.buffers,
                backend=self.backend,
            )
        self.counters.op_calls += 1
        self.counters.op_ns += time.perf_counter_ns() - started

    def _steer_in_groups(self, hidden: Tensor, residual: Tensor | None, layer: int, index: int) -> None:
        """The CPU path: stage by stage, with plans that last while the rows and their tokens stay."""
        is_open = None
        for stage in range(self.rows.num_stages):
            entry = index * self.rows.num_stages + stage
            groups = self._plans.get(entry)
            if groups is None:
                groups = self._plans[entry] = self._plan(layer, stage, entry, hidden.shape[0])
            if groups:

                def record(done: EditRecord, stage: int = stage) -> None:
                    self._report(done, layer, stage)

                is_open = steer_groups_(
                    hidden,
                    residual,
                    self.pool.tables,
                    groups,
                    is_open,
                    record,
                    use_native=self._use_native,
                    count_dropped=self._count_dropped,
                )
            else:
                is_open = None

    def _plan(self, layer: int, stage: int, entry: int, num_tokens: int) -> list[PlannedGroup]:
        """Layers at which every request asks for the same share one plan."""
        cells = [request.cells.get((layer, stage)) for request in self._requests.values()]
        if not any(cells):
            return []
        key = (stage, *map(id, cells))
        groups = self._plans_by_cells.get(key)
        if groups is None:
            groups = plan_groups(self.token_row[stage], self.rows, entry, num_tokens, self.gain[stage])
            self._plans_by_cells[key] = groups
        return groups

    def _report(self, done: EditRecord, layer: int, stage: int) -> None:
        """Hand what was done to reporting requests' tokens to the report store."""
        if self.reports is None or done.tokens.numel() == 0:
            return
        rows = self.token_row[stage][done.tokens].tolist()
        edits = torch.tensor([self._requests[row].edit_at[layer, stage] for row in rows])
        self.reports.record(
            layer,
            edits,
            done.tokens,
            done.shift.float(),
            done.steps.int(),
            None if done.before is None else torch.sigmoid(done.before),
            None if done.after is None else torch.sigmoid(done.after),
            self.pool.digest_of_slot[done.slot],
        )
