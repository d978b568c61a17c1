"""Changed rows on their way to the device: one indexed write per table, however many rows changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from ksteer_kernels import NO_SLOT, RowSettings, RowTables
from ksteer_vllm.device.pool import RequestRows

__all__ = ["RowWriter"]

_VECTORS = ("readout", "scale", "label_weights")
_SCALARS = tuple(f.name for f in fields(RowSettings) if f.name not in _VECTORS)


class RowWriter:
    """Collects what `set` and `clear` change, and writes it all at once."""

    def __init__(self, rows: RowTables, layer_index: Mapping[int, int], device: torch.device) -> None:
        self._rows = rows
        self._layer_index = layer_index
        self._device = device
        self._pending: dict[int, RequestRows | None] = {}

    def set(self, row: int, request: RequestRows) -> None:
        """The row holds this request from the next `write` on."""
        self._pending[row] = request

    def clear(self, row: int) -> None:
        """The row holds nobody from the next `write` on."""
        self._pending[row] = None

    def write(self) -> bool:
        """Copy every change to the device. Returns whether there was any."""
        if not self._pending:
            return False
        table = self._rows
        changed = self._to_device(torch.tensor(list(self._pending)))
        table.slot[:, changed] = NO_SLOT
        windows = torch.zeros(table.num_stages, len(self._pending), 4, dtype=torch.int64)
        fades = torch.zeros(table.num_stages, len(self._pending), 2, dtype=torch.int64)
        divisors = torch.zeros(table.num_stages, len(self._pending), dtype=torch.int64)
        cells: list[tuple[int, int, RowSettings]] = []
        for place, (row, request) in enumerate(self._pending.items()):
            if request is None:
                continue
            for stage, window in request.windows.items():
                windows[stage, place] = torch.tensor(window)
                fades[stage, place] = torch.tensor(request.fades[stage])
                divisors[stage, place] = request.divisors.get(stage, 1)
            for (layer, stage), settings in request.cells.items():
                if layer in self._layer_index:
                    cells.append((self._layer_index[layer] * table.num_stages + stage, row, settings))
        self._pending.clear()
        table.windows[:, changed] = self._to_device(windows)
        table.fade[:, changed] = self._to_device(fades)
        table.divisor[:, changed] = self._to_device(divisors)
        if cells:
            self._write_cells(cells)
        return True

    def _write_cells(self, cells: list[tuple[int, int, RowSettings]]) -> None:
        """Many cells share one settings object, as the layers of a request do: each is laid out once."""
        shared = {id(settings): settings for _, _, settings in cells}
        place = {key: index for index, key in enumerate(shared)}
        distinct = list(shared.values())
        at = (
            self._to_device(torch.tensor([entry for entry, _, _ in cells])),
            self._to_device(torch.tensor([row for _, row, _ in cells])),
        )
        chosen = self._to_device(torch.tensor([place[id(settings)] for _, _, settings in cells]))
        for name in _SCALARS:
            column: Tensor = getattr(self._rows, name)
            values = torch.tensor([getattr(settings, name) for settings in distinct], dtype=column.dtype)
            column[at] = self._to_device(values)[chosen]
        for name in _VECTORS:
            column = getattr(self._rows, name)
            table = torch.zeros(len(distinct), column.shape[2])
            for index, settings in enumerate(distinct):
                vector: Tensor | None = getattr(settings, name)
                if vector is not None:
                    table[index, : vector.shape[0]] = vector
            column[at] = self._to_device(table)[chosen]

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Pinned memory from torch's caching allocator: it is not reused before the copy is done."""
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)
