"""Recording on disk and at other positions, with one engine for all passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ksteer_vllm import UsageError
from ksteer_vllm.data.positions import PROMPT_LAST, REPLY, REPLY_MEAN, window_of
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import activations
from ksteer_vllm.fit.activations import Activations, Recorder
from ksteer_vllm.fit.stream import Stream
from tests.support.engines import OPTIONS

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def recorder(llama: Path) -> Iterator[Recorder]:
    with Recorder(str(llama), LAYERS, engine_options=OPTIONS) as found:
        yield found


@pytest.fixture(scope="module")
def in_memory(recorder: Recorder, rows: list[LabelledRow]) -> Activations:
    return recorder.record(rows)


def equal(first: Activations, second: Activations) -> None:
    """Float32 of the same passes in other batches: 1e-4."""
    assert torch.equal(first.row, second.row)
    assert torch.equal(first.position, second.position)
    for layer in LAYERS:
        one, other = (Stream.of(found.streams[layer]).tensor() for found in (first, second))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_interrupted_recording_goes_on(
    recorder: Recorder,
    in_memory: Activations,
    rows: list[LabelledRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in its fourth chunk of 20 rows; the first shard has two, so the third is run again."""
    monkeypatch.setattr(activations, "CHUNK_ROWS", 20)
    first = in_memory.row < 40
    held = sum(Stream.of(in_memory.streams[layer]).tensor()[first].nbytes for layer in LAYERS)
    monkeypatch.setattr(activations, "SHARD_BYTES", held)
    run, chunks = Recorder._run, []

    def stopping(self: Recorder, chunk: Any) -> Any:
        chunks.append(len(chunk))
        if len(chunks) == 4:
            raise KeyboardInterrupt
        return run(self, chunk)

    monkeypatch.setattr(Recorder, "_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        recorder.record(rows, REPLY, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    found = recorder.record(rows, REPLY, tmp_path)
    assert chunks == [20, 20, 20, 20, 20, 20, 10]
    equal(found, in_memory)
    monkeypatch.setattr(Recorder, "_engine", None)
    equal(recorder.record(rows, REPLY, tmp_path), in_memory)


def test_a_shard_is_closed_after_so_many_rows(
    recorder: Recorder, rows: list[LabelledRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a small model's rows would all be lost together, which take minutes on a real one."""
    assert activations.SHARD_ROWS == 256
    monkeypatch.setattr(activations, "CHUNK_ROWS", 10)
    monkeypatch.setattr(activations, "SHARD_ROWS", 20)
    recorder.record(rows[:50], PROMPT_LAST, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_chunks_are_bounded_in_rows_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "CHUNK_ROWS", 3)
    monkeypatch.setattr(activations, "CHUNK_BYTES", 100)
    lengths = [4, 6, 1, 30, 1, 1, 1, 1]
    found = list(activations._chunks(lengths, 5, 10))
    assert found == [range(5, 7), range(7, 8), range(8, 9), range(9, 12), range(12, 13)]
    assert list(activations._chunks([], 5, 10)) == []


def test_the_last_prompt_position_and_the_mean_of_the_reply(
    recorder: Recorder, in_memory: Activations, rows: list[LabelledRow]
) -> None:
    """What the reply window's first position, and its mean, are; the prompt alone gives the same residual."""
    bare = [row.model_copy(update={"reply": None}) for row in rows]
    last, mean = recorder.record(bare, PROMPT_LAST), recorder.record(rows, REPLY_MEAN)
    counts = torch.bincount(in_memory.row).tolist()
    for layer in LAYERS:
        per_row = Stream.of(in_memory.streams[layer]).tensor().split(counts)
        for found, expected in (
            (last, torch.stack([x[0] for x in per_row])),
            (mean, torch.stack([x.mean(0) for x in per_row])),
        ):
            assert found.row.tolist() == list(range(len(rows)))
            torch.testing.assert_close(
                Stream.of(found.streams[layer]).tensor(), expected, rtol=1e-4, atol=1e-4
            )
    starts = torch.stack([x[0] for x in in_memory.position.split(counts)])
    assert torch.equal(last.position, starts)
    assert torch.equal(mean.position, starts)


def test_a_row_that_cannot_be_recorded_is_named(recorder: Recorder, rows: list[LabelledRow]) -> None:
    with pytest.raises(DataError, match="row 2: reply: "):
        recorder.record([rows[0], rows[1].model_copy(update={"reply": None})])
    stream = torch.zeros(2, 3)
    stream[1, 1] = float("nan")
    with pytest.raises(
        DataError, match="row 7: the residual stream after layer 2 is not finite; leave the row"
    ):
        activations._checked({"2/0": stream}, 2, 0, 2, "row 7")


def test_positions_by_name() -> None:
    assert window_of("prompt-last") is PROMPT_LAST
    with pytest.raises(UsageError, match="positions: unknown 'last'; known: reply, reply-mean, prompt-last"):
        window_of("last")
