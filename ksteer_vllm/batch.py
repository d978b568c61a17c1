"""One engine's steering state: device tables, the rows of running requests, and the current step.

Takes arrays, not vLLM objects; `ksteer_vllm.host` feeds it from either model runner.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ksteer_kernels import (
    NO_SLOT,
    PlannedGroup,
    RowTables,
    Workspace,
    plan_groups,
    steer_,
    token_rows_,
)
from ksteer_vllm.capture import Capture
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.pool import ProbePool, RowProgram

__all__ = ["Counters", "SteeringState"]


@dataclass
class Counters:
    """Host time spent in this plugin, in nanoseconds, and what it was spent on."""

    steps: int = 0
    steered_steps: int = 0
    prepare_ns: int = 0
    op_calls: int = 0
    op_ns: int = 0
    requests: int = 0

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
        self.layer_index = {layer: index for index, layer in enumerate(config.layers)}
        self.pool = ProbePool(config, hidden_size=hidden_size, weight_dtype=weight_dtype, device=device)
        tables = self.pool.tables
        self.rows = RowTables.allocate(
            max(len(config.layers), 1), max_rows, tables.max_width, tables.max_labels, device
        )
        self.workspace = (
            Workspace.allocate(max_tokens, max(tables.max_width, tables.max_labels), device)
            if self.backend == "triton"
            else None
        )
        self.token_row = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        self._planned_for = self.token_row.clone()
        self.capture = Capture(config.capture.layers) if config.capture is not None else None
        self.counters = Counters()
        self.active = False
        self._steered_rows: set[int] = set()
        self._token_row_dirty = False
        self._groups: dict[int, list[PlannedGroup]] = {}
        self._pending: dict[int, tuple[RowProgram, tuple[int, ...]] | None] = {}

    @property
    def num_steered(self) -> int:
        """How many rows hold a steered request."""
        return len(self._steered_rows)

    def set_row(self, row: int, canonical: Mapping[str, Any], windows: Sequence[int]) -> None:
        """Give a row to a request: its program at each of its layers, and its absolute windows.

        Reaches the device with the next `begin_step`, together with every other change since the last.
        """
        self._pending[row] = (self.pool.row_program(canonical), tuple(windows))
        self._steered_rows.add(row)
        self.counters.requests += 1

    def clear_row(self, row: int) -> None:
        """The row's request has left. Closing its windows is enough: no token can name the row."""
        if row in self._steered_rows:
            self._steered_rows.discard(row)
            self._pending[row] = None

    def begin_step(
        self, request_rows: Tensor, query_start_loc: Tensor, positions: Tensor, num_tokens: int
    ) -> None:
        """Point every token of the coming forward pass at its row.

        request_rows [num_reqs] int (-1: unsteered), query_start_loc [num_reqs + 1] int32,
        positions [>= num_tokens] int64: device tensors, read without a host synchronisation.
        """
        rows_changed = self._write_pending_rows()
        self.active = True
        self._token_row_dirty = True
        self.counters.steered_steps += 1
        token_rows_(
            self.token_row,
            positions,
            query_start_loc,
            request_rows,
            self.rows.windows,
            num_tokens,
            self.backend,
        )
        if self.backend == "torch" and (rows_changed or not torch.equal(self.token_row, self._planned_for)):
            # While the same tokens meet the same rows, as in steady decoding, the plans stay.
            self._groups.clear()
            self._planned_for.copy_(self.token_row)

    def end_step(self) -> None:
        """Nobody is steered from here on, until the next `begin_step`: idle steps and dummy runs."""
        self.active = False
        if self.capture is not None:
            self.capture.end_step()
        if self._token_row_dirty:
            self.token_row.fill_(-1)
            self._token_row_dirty = False

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
        groups = None
        if self.backend == "torch":
            groups = self._groups.get(index)
            if groups is None:
                groups = plan_groups(self.token_row, self.rows, index, hidden.shape[0])
                self._groups[index] = groups
        steer_(
            hidden,
            residual,
            self.token_row,
            self.pool.tables,
            self.rows,
            index,
            workspace=self.workspace,
            groups=groups,
            backend=self.backend,
        )
        self.counters.op_calls += 1
        self.counters.op_ns += time.perf_counter_ns() - started

    def _write_pending_rows(self) -> bool:
        """Copy changed rows to the device: one indexed write per table, however many rows changed.

        Returns whether any row had changed.
        """
        if not self._pending:
            return False
        table = self.rows
        changed = self._to_device(torch.tensor(list(self._pending)))
        table.slot[:, changed] = NO_SLOT
        windows = [change[1] if change else (0, 0, 0, 0) for change in self._pending.values()]
        table.windows[changed] = self._to_device(torch.tensor(windows, dtype=torch.int64))
        given = {row: change[0] for row, change in self._pending.items() if change is not None}
        self._pending.clear()
        cells = [(self.layer_index[layer], row, p) for row, p in given.items() for layer in p.layers]
        if not cells:
            return True
        at = (
            self._to_device(torch.tensor([layer for layer, _, _ in cells])),
            self._to_device(torch.tensor([row for _, row, _ in cells])),
        )
        readout = torch.zeros(len(cells), table.readout.shape[2])
        for index, (_, _, p) in enumerate(cells):
            readout[index, : p.readout.shape[0]] = p.readout
        for column, values in (
            (table.program, [int(p.program) for _, _, p in cells]),
            (table.num_steps, [p.num_steps for _, _, p in cells]),
            (table.strength, [p.strength for _, _, p in cells]),
            (table.decay, [p.decay for _, _, p in cells]),
            (table.slot, [p.slot for _, _, p in cells]),
        ):
            column[at] = self._to_device(torch.tensor(values, dtype=column.dtype))
        table.readout[at] = self._to_device(readout)
        return True

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Pinned memory from torch's caching allocator: it is not reused before the copy is done."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)
