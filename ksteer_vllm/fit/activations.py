"""Residual-stream vectors of labelled rows, recorded inside the vLLM engine that will be steered."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import Progress
from torch import Tensor

from ksteer_vllm.bench.engines import model_of, reading_params, start_engine, stop_engine, take_captures
from ksteer_vllm.data.positions import REPLY, Window
from ksteer_vllm.data.rows import LabelledRow, row_name
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.shards import ShardFolder
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.models import ModelIdentity
from ksteer_vllm.spec.capture import capture_window

__all__ = ["Activations", "Recorder", "collect_activations", "default_layer"]

CHUNK_ROWS = 256
"""Rows given to the engine at once, at most."""
CHUNK_BYTES = 1 << 29
"""Most bytes of float32 vectors from one chunk, all layers together; a row with more is run alone."""
SHARD_BYTES = 128 << 20
"""Bytes after which a shard is closed, all its layers together."""
SHARD_ROWS = 256
"""Rows after which it is: what a recording that is interrupted may have to do again."""


@dataclass(frozen=True)
class Activations:
    """The residual stream at the output of some layers, one vector per recorded position.

    Attributes:
        streams: Layer -> [N, d] float32, in memory or a memory-mapped stream.
        row: [N] int64, the row each vector comes from, ascending.
        position: [N] int64, its position among the tokens that were run.
        model: What was run.
    """

    streams: Mapping[int, Tensor | Stream]
    row: Tensor
    position: Tensor
    model: ModelIdentity


def default_layer(num_layers: int) -> int:
    """The decoder block at 60 % of the depth."""
    return min(int(0.6 * num_layers), num_layers - 1)


class Recorder:
    """A vLLM engine that records, for any number of passes; it starts when the first row has to be run.

    Use as a context manager.

    Args:
        model: A folder, or a name on the hub.
        layers: Decoder blocks, from 0, whose outputs are recorded together.
        engine_options: Further arguments of `vllm.LLM`.
        progress: Where to show how many rows are done.
    """

    def __init__(
        self,
        model: str,
        layers: Sequence[int],
        *,
        engine_options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.layers, self.progress = model, tuple(sorted(set(layers))), progress
        self.engine_options = dict(engine_options or {})
        self.identity = model_of(model, self.engine_options)
        self._llm: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine; a further pass would start another."""
        if self._llm is not None:
            stop_engine(self._llm)
            self._llm = None
            gc.collect()  # of an engine in this process, the weights

    def record(
        self, rows: Sequence[LabelledRow], window: Window = REPLY, folder: Path | None = None
    ) -> Activations:
        """Run every row and keep the residual stream at the positions of `window`, all layers in one pass.

        Args:
            rows: Each prompt and, as far as the window needs it, reply.
            window: Which positions of a row are kept.
            folder: Where shards are kept; what it already holds is not run again. None: everything in memory.

        Raises:
            DataError: For a row that does not fit the engine or gives values that are not finite, and for
                shards of another recording.
            ConfigError: For a layer the model does not have.
        """
        temporary = Path(tempfile.mkdtemp(prefix="ksteer-")) if folder is None else None
        try:
            shards = self._shards(rows, window, temporary or folder or Path())
            if shards.done < len(rows):
                self._fill(shards, rows, window)
            found = _of_shards(shards)
            if temporary is None:
                return found
            streams = {layer: Stream.of(stream).tensor() for layer, stream in found.streams.items()}
            return replace(found, streams=streams)
        finally:
            if temporary is not None:
                shutil.rmtree(temporary)

    def recorded(self, rows: Sequence[LabelledRow], window: Window, folder: Path) -> Activations | None:
        """What `record` left in the folder; None if it is missing or incomplete. No engine starts.

        Raises DataError for shards of another recording.
        """
        if not folder.exists():
            return None
        shards = self._shards(rows, window, folder)
        return _of_shards(shards) if shards.done == len(rows) else None

    def _shards(self, rows: Sequence[LabelledRow], window: Window, folder: Path) -> ShardFolder:
        return ShardFolder(
            folder,
            rows,
            self.layers,
            model=self.identity,
            positions=window.text,
            dtype=str(self.engine_options.get("dtype", "auto")),
        )

    def _fill(self, shards: ShardFolder, rows: Sequence[LabelledRow], window: Window) -> None:
        llm = self._engine()
        tokenizer, longest = llm.get_tokenizer(), llm.llm_engine.model_config.max_model_len
        task = None
        if self.progress is not None:
            task = self.progress.add_task("recording activations", total=len(rows), completed=shards.done)
        pieces: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        numbers: list[Tensor] = []
        positions: list[Tensor] = []

        def encoded(index: int) -> tuple[list[int], int, int]:
            return _encode(tokenizer, index, rows[index], window, longest)

        lengths = []  # of all rows: one that cannot be run is named before any is
        for index in range(shards.done, len(rows)):
            _, first, end = encoded(index)
            lengths.append(end - first)
        for chosen in _chunks(lengths, shards.done, 4 * len(self.layers) * self.identity.hidden_size):
            start, chunk = chosen.start, [encoded(index) for index in chosen]
            captured = self._run(chunk)
            for index, (_, first, end) in enumerate(chunk):
                name = row_name(rows[start + index], start + index)
                found = {layer: _checked(captured, layer, index, end - first, name) for layer in self.layers}
                for layer, stream in found.items():
                    pieces[layer].append(stream.double().mean(0, True).float() if window.mean else stream)
                where = torch.arange(first, first + 1 if window.mean else end)
                positions.append(where)
                numbers.append(torch.full_like(where, start + index))
            if self.progress is not None and task is not None:
                self.progress.advance(task, len(chunk))
            held = sum(piece.nbytes for stream in pieces.values() for piece in stream)
            full = held >= SHARD_BYTES or start + len(chunk) - shards.done >= SHARD_ROWS
            if full or start + len(chunk) == len(rows):
                streams = {layer: torch.cat(stream) for layer, stream in pieces.items()}
                shards.write(start + len(chunk), streams, torch.cat(numbers), torch.cat(positions))
                pieces, numbers, positions = {layer: [] for layer in self.layers}, [], []

    def _engine(self) -> Any:
        if self._llm is None:
            options = {**self.engine_options, "enforce_eager": True, "enable_prefix_caching": False}
            capture = {"layers": list(self.layers)}
            self._llm = start_engine(self.model, options, steering={"capture": capture}, seeded=False)
        return self._llm

    def _run(self, chunk: Sequence[tuple[list[int], int, int]]) -> dict[str, Tensor]:
        sampling = [
            reading_params(capture=capture_window(str(index), first, end))
            for index, (_, first, end) in enumerate(chunk)
        ]
        llm = self._engine()
        prompts = [{"prompt_token_ids": tokens} for tokens, _, _ in chunk]
        llm.generate(prompts, sampling, use_tqdm=False)
        return take_captures(llm)


def collect_activations(
    model: str,
    rows: Sequence[LabelledRow],
    layers: Sequence[int],
    *,
    window: Window = REPLY,
    folder: Path | None = None,
    engine_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Activations:
    """One pass of a `Recorder`, whose engine has stopped again.

    Args:
        model, layers, engine_options, progress: As of `Recorder`.
        rows, window, folder: As of `Recorder.record`, whose errors it raises.

    Returns:
        Of every layer one vector per recorded position.
    """
    with Recorder(model, layers, engine_options=engine_options, progress=progress) as recorder:
        return recorder.record(rows, window, folder)


def _of_shards(shards: ShardFolder) -> Activations:
    row, position = shards.rows_and_positions()
    return Activations(dict(shards.streams()), row, position, shards.model)


def _chunks(lengths: Sequence[int], start: int, position_bytes: int) -> Iterator[range]:
    """Ranges of rows from `start` on, each within CHUNK_ROWS and CHUNK_BYTES; lengths: positions per row."""
    first, held = start, 0
    for index, length in enumerate(lengths, start=start):
        size = length * position_bytes
        if index > first and (index - first == CHUNK_ROWS or held + size > CHUNK_BYTES):
            yield range(first, index)
            first, held = index, 0
        held += size
    if lengths:
        yield range(first, start + len(lengths))


def _encode(
    tokenizer: Any, index: int, row: LabelledRow, window: Window, max_model_len: int
) -> tuple[list[int], int, int]:
    """A row's tokens and the positions to record. Raises DataError naming a row that does not fit."""
    try:
        found = window.of(tokenizer, row)
    except DataError as error:
        raise DataError(f"{row_name(row, index)}: {error}") from None
    if len(found[0]) + 1 > max_model_len:
        raise DataError(
            f"{row_name(row, index)}: prompt and reply have {len(found[0])} tokens; "
            f"the engine holds {max_model_len} with the one it generates"
        )
    return found


def _checked(captured: Mapping[str, Tensor], layer: int, index: int, length: int, name: str) -> Tensor:
    stream = captured.get(f"{layer}/{index}")
    if stream is None or len(stream) != length:
        found = 0 if stream is None else len(stream)
        raise RuntimeError(f"{name}: layer {layer} recorded {found} of {length} positions")
    if not torch.isfinite(stream).all():
        raise DataError(
            f"{name}: the residual stream after layer {layer} is not finite; "
            "leave the row out, or run the engine in float32"
        )
    return stream
