"""A worker's records of its steered tokens: one per edit, layer and position, kept until they are fetched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from torch import Tensor

from ksteer_vllm.spec.admitted import AdmittedRequest

__all__ = ["MAX_ENDED", "ReportStore"]

MAX_ENDED = 4096
"""Requests that have ended whose records are kept for whoever may still come for them."""

logger = logging.getLogger("vllm.ksteer")


class _Rows:
    """The records of one edit at one layer, by position. Amortised growth; float32."""

    def __init__(self, width: int, digest: str) -> None:
        self.digest = digest
        self.count = 0
        self.positions = np.empty(16, np.int64)
        self.values = np.empty((16, width), np.float32)

    def forget_from(self, position: int) -> None:
        self.count = int(np.searchsorted(self.positions[: self.count], position))

    def write(self, positions: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """positions ascending and distinct; what was recorded at one of them before is replaced."""
        if self.count and positions[0] <= self.positions[self.count - 1]:
            kept = np.flatnonzero(~np.isin(self.positions[: self.count], positions))
            positions = np.concatenate([self.positions[kept], positions])
            values = np.concatenate([self.values[kept], values])
            order = np.argsort(positions)
            positions, values, self.count = positions[order], values[order], 0
        end = self.count + len(positions)
        if end > len(self.positions):
            capacity = max(end, 2 * len(self.positions))
            self.positions = np.resize(self.positions, capacity)
            self.values = np.resize(self.values, (capacity, self.values.shape[1]))
        self.positions[self.count : end] = positions
        self.values[self.count : end] = values
        self.count = end


_Records = dict[tuple[int, int], _Rows]
"""(edit, layer) -> rows, of one request."""


class ReportStore:
    """The records of one worker's reporting requests.

    Per step: `begin_step`, any number of `record`, `end_step`. Positions of a step are about to be computed,
    so whatever was recorded there or later is forgotten first: rejected drafts and tokens computed again
    after a preemption leave one record each.
    """

    def __init__(self) -> None:
        self._running: dict[str, _Records] = {}
        self._ended: dict[str, _Records] = {}
        self._tokens: Tensor | None = None
        self._step: list[_Records] = []
        self._owner = np.empty(0, np.int64)
        self._positions = np.empty(0, np.int64)

    def add_request(self, request_id: str, admitted: AdmittedRequest) -> None:
        """Keep records of a request if it reports; one that comes back from preemption keeps those it had."""
        if admitted.report:
            self._running.setdefault(request_id, self._ended.pop(request_id, {}))

    def remove_request(self, request_id: str) -> None:
        """The request has finished, or was preempted or aborted: its records stay until they are taken."""
        records = self._running.pop(request_id, None)
        if records is None:
            return
        self._ended[request_id] = records
        if len(self._ended) > MAX_ENDED:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            logger.warning("steering report of request %s dropped: nobody has asked for it", oldest)

    def begin_step(
        self, request_ids: Sequence[str], num_scheduled: NDArray[Any] | Sequence[int], positions: Tensor
    ) -> None:
        """Find this step's tokens of reporting requests.

        Args:
            request_ids: In the order of the step's token axis.
            num_scheduled: Tokens each request computes in this step.
            positions: [>= sum(num_scheduled)] int64, absolute, on any device; read back only for tokens of
                reporting requests.
        """
        self._tokens = None
        if not self._running:
            return
        self._step = []
        pieces = []
        counts = np.asarray(num_scheduled).tolist()
        owner = np.full(sum(counts), -1)
        first = 0
        for request_id, count in zip(request_ids, counts, strict=True):
            records = self._running.get(request_id)
            if records is not None and count > 0:
                owner[first : first + count] = len(self._step)
                self._step.append(records)
                pieces.append(torch.arange(first, first + count))
            first += count
        if not pieces:
            return
        self._tokens = torch.cat(pieces)
        self._owner = owner
        self._positions = np.zeros(first, np.int64)
        self._positions[self._tokens.numpy()] = positions[self._tokens.to(positions.device)].cpu().numpy()
        for piece, records in zip(pieces, self._step, strict=True):
            for rows in records.values():
                rows.forget_from(int(self._positions[piece[0]]))

    def end_step(self) -> None:
        """Nothing is recorded until the next `begin_step`."""
        self._tokens = None

    def wanted_tokens(self) -> Tensor | None:
        """Those of this step's tokens whose requests report: indices [n] int64 on the CPU, or None."""
        return self._tokens

    def record(
        self,
        layer: int,
        edit_index_of_token: Tensor,
        tokens: Tensor,
        shift: Tensor,
        steps: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        digest: str,
    ) -> None:
        """Keep what happened to some tokens of this step at one layer. Tensors on the CPU.

        Args:
            layer: The decoder block's index.
            edit_index_of_token: [n] int64, which of its request's edits it was.
            tokens: [n] int64, indices into the step's tokens; those of other requests are passed over.
            shift: [n] float32, |x' - x| / |x|, NaN where the edit was dropped.
            steps: [n] int32, negative where there are none.
            before: [n, K] float32, probabilities of the labels at x, or None.
            after: The same at x'; None if before is.
            digest: Of the probe whose labels they are.
        """
        if self._tokens is None:
            return
        at = tokens.numpy()
        owner, positions, edit = self._owner[at], self._positions[at], edit_index_of_token.numpy()
        columns = [shift[:, None].float(), steps[:, None].float()]
        if before is not None and after is not None:
            columns += [before.float(), after.float()]
        values = torch.cat(columns, dim=1).numpy()
        order = np.lexsort((positions, edit, owner))
        order = order[owner[order] >= 0]
        if not len(order):
            return
        starts = np.flatnonzero(np.diff(owner[order]) | np.diff(edit[order])) + 1
        for group in np.split(order, starts):
            records = self._step[owner[group[0]]]
            key = (int(edit[group[0]]), layer)
            rows = records.get(key)
            if rows is None:
                rows = records[key] = _Rows(values.shape[1], digest)
            rows.write(positions[group], values[group])

    def take(self, request_id: str, num_tokens: int) -> bytes:
        """Hand over a request's records, and forget it.

        Args:
            request_id: Of a request that has finished.
            num_tokens: Records of later positions are left out: the request ended before them.

        Returns:
            safetensors, "EDIT/LAYER/positions/DIGEST" [n] int64 and "EDIT/LAYER/values/DIGEST" [n, 2 + 2K]
            float32, whose columns are shift, steps, probabilities before, probabilities after; b"" if there
            are no records.
        """
        records = self._running.pop(request_id, None)
        if records is None:
            records = self._ended.pop(request_id, {})
        arrays: dict[str, NDArray[Any]] = {}
        for (edit, layer), rows in records.items():
            rows.forget_from(num_tokens)
            if rows.count:
                arrays[f"{edit}/{layer}/positions/{rows.digest}"] = rows.positions[: rows.count]
                arrays[f"{edit}/{layer}/values/{rows.digest}"] = rows.values[: rows.count]
        return save_arrays(arrays) if arrays else b""
