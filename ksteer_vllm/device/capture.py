"""Recording the residual stream of chosen tokens inside the engine, for fitting probes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from ksteer_vllm.spec.capture import CAPTURE_KEY

__all__ = ["Capture"]


class Capture:
    """Collects x = hidden + residual at the output of some layers, before any edit there.

    Runs in eager engines only (a compiled graph would freeze which tokens are recorded).

    Args:
        layers: Decoder blocks that are recorded.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = frozenset(layers)
        self._wanted: dict[str, Mapping[str, Any]] = {}
        self._step: list[tuple[str, int, int]] = []
        self._tokens: Tensor | None = None
        self._rows: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}

    def add_request(self, request_id: str, sampling_params: Any) -> None:
        """Remember what a new request wants recorded, if anything."""
        wanted = (sampling_params.extra_args or {}).get(CAPTURE_KEY) if sampling_params is not None else None
        if wanted is not None:
            self._wanted[request_id] = wanted

    def remove_request(self, request_id: str) -> None:
        self._wanted.pop(request_id, None)

    def begin_step(
        self, request_ids: Sequence[str], num_scheduled: Sequence[int], num_computed: Sequence[int]
    ) -> None:
        """Find this step's tokens to record.

        Args:
            request_ids: In the order of the step's token axis.
            num_scheduled: Tokens each request computes in this step.
            num_computed: Tokens it has computed before: its first position in this step.
        """
        self._step = []
        tokens: list[Tensor] = []
        first = 0
        for request_id, count, position in zip(request_ids, num_scheduled, num_computed, strict=True):
            window = self._wanted.get(request_id)
            if window is not None:
                low, high = max(window["start"] - position, 0), min(window["end"] - position, count)
                if low < high:
                    self._step.append((window["id"], position + low, high - low))
                    tokens.append(torch.arange(first + low, first + high))
            first += count
        self._tokens = torch.cat(tokens) if tokens else None

    def end_step(self) -> None:
        """Nothing is recorded until the next `begin_step`."""
        self._tokens = None

    def record(self, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
        """Keep this layer's residual stream for the tokens of this step that were asked for.

        Args:
            hidden: [T, d], any float dtype.
            residual: [T, d] or None.
            layer: The decoder block's index.
        """
        if self._tokens is None or layer not in self.layers:
            return
        tokens = self._tokens.to(hidden.device)
        stream = hidden[tokens].float()
        if residual is not None:
            stream = stream + residual[tokens].float()
        pieces = stream.cpu().split([count for _, _, count in self._step])
        for (capture_id, position, _), piece in zip(self._step, pieces, strict=True):
            self._rows.setdefault((capture_id, layer), []).append((position, piece))

    def take(self, ids: Collection[str] | None = None) -> bytes:
        """Hand over what was recorded, and forget it.

        Args:
            ids: Of finished requests; None: everything.

        Returns:
            safetensors, "LAYER/ID" -> [tokens, d] float32.
        """
        taken = [key for key in self._rows if ids is None or key[0] in ids]
        return save_tensors(
            {f"{layer}/{name}": _in_order(self._rows.pop((name, layer))) for name, layer in taken}
        )


def _in_order(pieces: Sequence[tuple[int, Tensor]]) -> Tensor:
    """One row per position: a preempted request computes, and records, its first positions again."""
    first = min(position for position, _ in pieces)
    end = max(position + len(piece) for position, piece in pieces)
    rows = pieces[0][1].new_empty(end - first, pieces[0][1].shape[1])
    for position, piece in pieces:
        rows[position - first : position - first + len(piece)] = piece
    return rows
