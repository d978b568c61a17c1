"""Shards: what is on disk, going on after an interruption, and refusing another recording's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ksteer_vllm import ModelIdentity
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.shards import ShardFolder

D = 3
MODEL = ModelIdentity(name="one", model_type="llama", hidden_size=D, num_layers=4)
ROWS = [
    LabelledRow(prompt=f"q{index}", reply="r", labels=("dry",) if index % 2 else ("warm", "dry"))
    for index in range(5)
]


def open_folder(
    folder: Path, rows: list[LabelledRow] = ROWS, layers: Any = (1, 2), **changes: Any
) -> ShardFolder:
    return ShardFolder(
        folder, rows, layers, **{"model": MODEL, "positions": "reply", "dtype": "float32", **changes}
    )


def write(shards: ShardFolder, end: int) -> None:
    """Two vectors a row, whose value is row + layer / 10."""
    row = torch.arange(shards.done, end).repeat_interleave(2)
    streams = {layer: (row + layer / 10)[:, None].expand(-1, D) for layer in shards.layers}
    shards.write(end, streams, row, torch.tensor([7, 8]).repeat(end - shards.done))


def test_what_is_written_is_read_and_says_what_it_is(tmp_path: Path) -> None:
    shards = open_folder(tmp_path)
    write(shards, 2)
    write(shards, 5)
    again = open_folder(tmp_path, layers=[2])
    assert again.done == 5
    row, position = again.rows_and_positions()
    assert row.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert position.tolist() == [7, 8] * 5
    assert list(again.streams()) == [2]
    assert torch.equal(again.streams()[2].tensor(), (row + 0.2)[:, None].expand(-1, D))
    with safe_open(tmp_path / "00001.safetensors", "pt") as file:
        header = json.loads(file.metadata()["ksteer"])
        assert file.get_tensor("labels").tolist() == [[1, 1], [1, 0], [1, 1]]
    assert header["labels"] == ["dry", "warm"]
    assert header["layers"] == [1, 2]
    assert header["site"] == "output"
    assert header["rows"] == [2, 5]
    assert header["model"]["name"] == "one"


def test_a_recording_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    shards = open_folder(tmp_path)
    write(shards, 2)
    write(shards, 4)
    whole = (tmp_path / "00001.safetensors").read_bytes()
    (tmp_path / "00001.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "00002.partial").write_bytes(b"x")
    again = open_folder(tmp_path)
    assert again.done == 2
    write(again, 5)
    assert open_folder(tmp_path).rows_and_positions()[0].tolist() == sorted([*range(5)] * 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": MODEL.model_copy(update={"name": "two"})}, "the model differs.*from one, this is two"),
        ({"rows": ROWS[::-1]}, "the data differs"),
        ({"positions": "prompt"}, "the recorded positions differs"),
        ({"dtype": "bfloat16"}, "the engine's dtype differs"),
        ({"layers": (1, 3)}, r"holds layers \[1, 2\], not all of \[1, 3\]"),
    ],
)
def test_shards_of_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write(open_folder(tmp_path), 2)
    with pytest.raises(DataError, match=f"00000.safetensors: {says}.*take another folder, or delete it"):
        open_folder(tmp_path, **changes)
