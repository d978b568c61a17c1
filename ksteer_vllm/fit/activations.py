"""Residual-stream vectors of labelled rows, recorded inside the vLLM engine that will be steered."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import Progress
from safetensors.torch import load as load_tensors
from torch import Tensor

from ksteer_vllm.capture import CAPTURE_KEY
from ksteer_vllm.config import enable
from ksteer_vllm.fit.data import DataError, LabelledRow
from ksteer_vllm.fit.positions import REPLY, Window
from ksteer_vllm.fit.shards import ShardFolder
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.probe import ModelIdentity

__all__ = [
    "Activations",
    "Recorder",
    "collect_activations",
    "default_layer",
    "model_of",
    "model_of_engine",
    "shut_down",
]

CHUNK_ROWS = 256
"""Rows given to the engine at once."""
SHARD_BYTES = 128 << 20
"""A shard is closed after the chunk that reaches this, all its layers together."""


@dataclass(frozen=True)
class Activations:
    """The residual stream at the output of some layers, one vector per recorded position.

    streams: layer -> [N, d] float32, in memory or a memory-mapped stream. row: [N] int64, the row each
    vector comes from, ascending. position: [N] int64, its position among the tokens that were run.
    """

    streams: Mapping[int, Tensor | Stream]
    row: Tensor
    position: Tensor
    model: ModelIdentity


def model_of(model: str, engine_options: Mapping[str, Any] | None = None) -> ModelIdentity:
    """What vLLM takes `model` to be, from its configuration alone."""
    from vllm.engine.arg_utils import EngineArgs

    from ksteer_vllm.host.settings import model_identity

    return model_identity(EngineArgs(model=model, **(engine_options or {})).create_model_config())


def default_layer(num_layers: int) -> int:
    """The decoder block at 60 % of the depth."""
    return min(int(0.6 * num_layers), num_layers - 1)


class Recorder:
    """A vLLM engine that records, for any number of passes; it starts when the first row has to be run.

    layers: recorded together. engine_options: further arguments of `vllm.LLM`. Use as a context manager.
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
            shut_down(self._llm)
            self._llm = None

    def record(
        self, rows: Sequence[LabelledRow], window: Window = REPLY, folder: Path | None = None
    ) -> Activations:
        """Run every row and keep the residual stream at the positions of `window`, all layers in one pass.

        folder: of the shards; what it already holds is not run again. None: everything in memory. Raises
        DataError for a row that does not fit the engine or gives values that are not finite, and for shards
        of another recording; ConfigError for a layer the model does not have.
        """
        temporary = Path(tempfile.mkdtemp(prefix="ksteer-")) if folder is None else None
        try:
            shards = ShardFolder(
                temporary or folder or Path(),
                rows,
                self.layers,
                model=self.identity,
                positions=window.text,
                dtype=str(self.engine_options.get("dtype", "auto")),
            )
            if shards.done < len(rows):
                self._fill(shards, rows, window)
            streams: dict[int, Tensor | Stream] = dict(shards.streams())
            if temporary is not None:
                streams = {layer: Stream.of(stream).tensor() for layer, stream in streams.items()}
            row, position = shards.rows_and_positions()
            return Activations(streams, row, position, shards.model)
        finally:
            if temporary is not None:
                shutil.rmtree(temporary)

    def _fill(self, shards: ShardFolder, rows: Sequence[LabelledRow], window: Window) -> None:
        llm = self._engine()
        tokenizer, longest = llm.get_tokenizer(), llm.llm_engine.model_config.max_model_len
        task = None
        if self.progress is not None:
            task = self.progress.add_task("recording activations", total=len(rows), completed=shards.done)
        pieces: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        numbers: list[Tensor] = []
        positions: list[Tensor] = []

        def encoded(start: int) -> list[tuple[list[int], int, int]]:
            chosen = range(start, min(start + CHUNK_ROWS, len(rows)))
            return [_encode(tokenizer, index, rows[index], window, longest) for index in chosen]

        starts = range(shards.done, len(rows), CHUNK_ROWS)
        for start in starts:
            encoded(start)  # a row that cannot be run is named before any is
        for start in starts:
            chunk = encoded(start)
            captured = self._run(chunk)
            for index, (_, first, end) in enumerate(chunk):
                found = {
                    layer: _checked(captured, layer, index, end - first, start + index)
                    for layer in self.layers
                }
                for layer, stream in found.items():
                    pieces[layer].append(stream.double().mean(0, True).float() if window.mean else stream)
                where = torch.arange(first, first + 1 if window.mean else end)
                positions.append(where)
                numbers.append(torch.full_like(where, start + index))
            if self.progress is not None and task is not None:
                self.progress.advance(task, len(chunk))
            held = sum(piece.nbytes for stream in pieces.values() for piece in stream)
            if held >= SHARD_BYTES or start + len(chunk) == len(rows):
                streams = {layer: torch.cat(stream) for layer, stream in pieces.items()}
                shards.write(start + len(chunk), streams, torch.cat(numbers), torch.cat(positions))
                pieces, numbers, positions = {layer: [] for layer in self.layers}, [], []

    def _engine(self) -> Any:
        if self._llm is None:
            from vllm import LLM

            ours = {
                "enforce_eager": True,
                "enable_prefix_caching": False,
                "additional_config": enable(capture={"layers": list(self.layers)}),
            }
            self._llm = LLM(self.model, **{"use_tqdm_on_load": False, **self.engine_options, **ours})
        return self._llm

    def _run(self, chunk: Sequence[tuple[list[int], int, int]]) -> dict[str, Tensor]:
        from vllm import SamplingParams

        sampling = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                extra_args={CAPTURE_KEY: {"id": str(index), "start": first, "end": end}},
            )
            for index, (_, first, end) in enumerate(chunk)
        ]
        llm = self._engine()
        prompts = [{"prompt_token_ids": tokens} for tokens, _, _ in chunk]
        llm.generate(prompts, sampling, use_tqdm=False)
        return _merge(llm.collective_rpc("ksteer_take_captures"))


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
    """One pass of a `Recorder` whose engine has stopped again; what it raises."""
    with Recorder(model, layers, engine_options=engine_options, progress=progress) as recorder:
        return recorder.record(rows, window, folder)


def model_of_engine(llm: Any) -> ModelIdentity:
    """The identity of a running engine's model."""
    from ksteer_vllm.host.settings import model_identity

    return model_identity(llm.llm_engine.model_config)


def shut_down(llm: Any) -> None:
    """Stop an engine, its processes included, and release what it holds."""
    llm.llm_engine.engine_core.shutdown()


def _encode(
    tokenizer: Any, index: int, row: LabelledRow, window: Window, max_model_len: int
) -> tuple[list[int], int, int]:
    """A row's tokens and the positions to record. Raises DataError naming a row that does not fit."""
    try:
        found = window.of(tokenizer, row)
    except DataError as error:
        raise DataError(f"row {index + 1}: {error}") from None
    if len(found[0]) + 1 > max_model_len:
        raise DataError(
            f"row {index + 1}: prompt and reply have {len(found[0])} tokens; "
            f"the engine holds {max_model_len} with the one it generates"
        )
    return found


def _merge(results: Sequence[bytes]) -> dict[str, Tensor]:
    """What every worker recorded: tensor-parallel workers agree, pipeline workers hold different layers."""
    captured: dict[str, Tensor] = {}
    for result in results:
        if result:
            captured.update(load_tensors(result))
    return captured


def _checked(captured: Mapping[str, Tensor], layer: int, index: int, length: int, row: int) -> Tensor:
    stream = captured.get(f"{layer}/{index}")
    if stream is None or len(stream) != length:
        found = 0 if stream is None else len(stream)
        raise RuntimeError(f"row {row + 1}: layer {layer} recorded {found} of {length} positions")
    if not torch.isfinite(stream).all():
        raise DataError(
            f"row {row + 1}: the residual stream after layer {layer} is not finite; "
            "leave the row out, or run the engine in float32"
        )
    return stream
