"""Reports of the Triton backend: read back from device buffers once the step that wrote them is over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ksteer_kernels import NO_ROW, ReportBuffers
from ksteer_vllm.device.backend import StepTables
from ksteer_vllm.device.pool import RequestRows
from ksteer_vllm.device.report_store import ReportStore

__all__ = ["DeviceReports"]


class DeviceReports:
    """Buffers that captured CUDA graphs write into, and the requests they belong to in the current step.

    Args:
        tables: What the steps' tokens meet.
        store: Where records go once their step is over.
    """

    def __init__(self, tables: StepTables, store: ReportStore) -> None:
        self.buffers = ReportBuffers.allocate(
            tables.rows.slot.shape[0],
            tables.token_row.shape[1],
            tables.pool.tables.max_labels,
            tables.token_row.device,
        )
        self._tables = tables
        self._store = store
        self._requests: dict[int, RequestRows] = {}

    def begin_step(self) -> None:
        """Remember whose rows these are: by the time the step is over, requests may have come and gone."""
        self._requests = dict(self._tables.requests)

    def collect(self) -> None:
        """Hand the last step's records to the store; waits for the device only if somebody asked for one."""
        requests, self._requests = self._requests, {}
        tokens = self._store.wanted_tokens()
        if tokens is None or not requests:
            return
        tables, num_stages = self._tables, self._tables.rows.num_stages
        at = tokens.to(tables.token_row.device)
        rows = tables.token_row[:, at].cpu()
        shift, steps = self.buffers.shift[:, at].cpu(), self.buffers.steps[:, at].cpu()
        before, after = self.buffers.before[:, at].cpu(), self.buffers.after[:, at].cpu()
        for layer, index in tables.layer_index.items():
            for stage in range(num_stages):
                entry = index * num_stages + stage
                for slot, members, edits in self._by_slot(requests, rows[stage], shift[entry], layer, stage):
                    labels = tables.pool.tables.cpu_sizes[slot][2]
                    self._store.record(
                        layer,
                        edits,
                        tokens[members],
                        shift[entry, members],
                        steps[entry, members],
                        torch.sigmoid(before[entry, members, :labels]) if labels else None,
                        torch.sigmoid(after[entry, members, :labels]) if labels else None,
                        tables.pool.digest_of_slot[slot],
                    )

    def _by_slot(
        self, requests: Mapping[int, RequestRows], row: Tensor, shift: Tensor, layer: int, stage: int
    ) -> list[tuple[int, Tensor, Tensor]]:
        """(slot, members [n] int64, edit indices [n] int64) of what was edited and reported at an entry."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for member, (token_row, moved) in enumerate(zip(row.tolist(), shift.tolist(), strict=True)):
            if token_row == NO_ROW or moved < 0 or token_row not in requests:
                continue
            request = requests[token_row]
            cell, edit = request.cells.get((layer, stage)), request.edit_at.get((layer, stage))
            if cell is not None and edit is not None:
                members, edits = found.setdefault(cell.slot, ([], []))
                members.append(member)
                edits.append(edit)
        return [(slot, torch.tensor(m), torch.tensor(e)) for slot, (m, e) in found.items()]
