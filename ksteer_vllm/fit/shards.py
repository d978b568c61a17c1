"""Recorded activations on disk: safetensors shards that are written once and memory-mapped afterwards.

    FOLDER/00000.safetensors, 00001.safetensors, ...

Each holds consecutive rows: `layer.L` [n, d] float32 per layer, `row` [n] and `position` [n] int64, and
`labels` [rows, K] uint8 for the names in its header, which also says what was recorded, of which model, at
which site. A recording that was interrupted resumes after the last whole shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ksteer_vllm.data.rows import LabelledRow, data_digest
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.models import ModelIdentity

__all__ = ["ShardFolder"]

_HEADER = "ksteer"
_NAMES = {
    "model": "the model",
    "data_digest": "the data",
    "positions": "the recorded positions",
    "dtype": "the engine's dtype",
}


@dataclass(frozen=True)
class _Shard:
    path: Path
    header: Mapping[str, Any]

    @property
    def end(self) -> int:
        """The row after its last."""
        return int(self.header["rows"][1])


class ShardFolder:
    """The shards of one recording: of rows, positions, layers and a model.

    Raises DataError for those of another. layers: the layers needed; shards may hold more. dtype: what
    the engine computed in.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[LabelledRow],
        layers: Sequence[int],
        *,
        model: ModelIdentity,
        positions: str,
        dtype: str,
    ) -> None:
        self.folder, self.rows, self.layers, self.model = folder, rows, tuple(sorted(set(layers))), model
        self.labels = sorted({label for row in rows for label in row.labels})
        self.identity = {
            "model": model.model_dump(),
            "data_digest": data_digest(rows),
            "positions": positions,
            "dtype": dtype,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._shards = self._found()

    @property
    def done(self) -> int:
        """How many rows are recorded."""
        return self._shards[-1].end if self._shards else 0

    def write(self, end: int, streams: Mapping[int, Tensor], row: Tensor, position: Tensor) -> None:
        """Append the rows from `done` to `end`; streams: layer -> [n, d]; row, position [n]."""
        rows = self.rows[self.done : end]
        labels = [[label in row.labels for label in self.labels] for row in rows]
        tensors = {
            **{f"layer.{layer}": streams[layer].float().contiguous() for layer in self.layers},
            "row": row.contiguous(),
            "position": position.contiguous(),
            "labels": torch.tensor(labels, dtype=torch.uint8).reshape(len(rows), len(self.labels)),
        }
        header = {
            **self.identity,
            "site": "output",
            "layers": self.layers,
            "labels": self.labels,
            "rows": [self.done, end],
            "of_rows": len(self.rows),
        }
        path = self.folder / f"{len(self._shards):05d}.safetensors"
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={_HEADER: json.dumps(header)})
        partial.replace(path)
        self._shards.append(_Shard(path, header))

    def streams(self) -> dict[int, Stream]:
        """Layer -> the recorded vectors, memory-mapped."""
        return {layer: Stream(tuple(self._tensors(f"layer.{layer}"))) for layer in self.layers}

    def rows_and_positions(self) -> tuple[Tensor, Tensor]:
        """[N] int64 each: the row of every vector, ascending, and its position."""
        return torch.cat(self._tensors("row")), torch.cat(self._tensors("position"))

    def _tensors(self, name: str) -> list[Tensor]:
        found = []
        for shard in self._shards:
            with safe_open(shard.path, "pt") as file:
                found.append(file.get_tensor(name))
        return found

    def _found(self) -> list[_Shard]:
        """The whole shards in sequence; a broken one and those after it are ignored and overwritten."""
        shards: list[_Shard] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            header = _header(path)
            if header is None or header["rows"][0] != (shards[-1].end if shards else 0):
                break
            self._check(path, header)
            shards.append(_Shard(path, header))
        return shards

    def _check(self, path: Path, header: Mapping[str, Any]) -> None:
        differing = [name for name, wanted in self.identity.items() if header.get(name) != wanted]
        if not set(self.layers) <= set(header["layers"]):
            raise DataError(
                f"{path}: holds layers {header['layers']}, not all of {list(self.layers)}; "
                "take another folder, or delete it to record again"
            )
        if differing:
            name = differing[0]
            detail = ""
            if name == "model":
                detail = f" (it was recorded from {header['model']['name']}, this is {self.model.name})"
            raise DataError(
                f"{path}: {_NAMES[name]} differs from that of this fit{detail}; activations of two must not "
                "be mixed: take another folder, or delete it to record again"
            )


def _header(path: Path) -> dict[str, Any] | None:
    """The header of a shard; None if the file is not a whole shard."""
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    except (OSError, SafetensorError, ValueError):
        return None
    return found if isinstance(found, dict) and {"rows", "layers"} <= found.keys() else None
