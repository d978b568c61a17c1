"""Probe folders that are damaged, hostile or no folders at all: a ProbeError that names the file, soon."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors

from ksteer_vllm import ModelIdentity, ProbeError
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.probes.metadata import (
    MAX_METADATA_BYTES,
    MAX_WEIGHTS_BYTES,
    METADATA_FILE,
    WEIGHTS_FILE,
    ProbeMetadata,
    digest_of,
)
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe
from testbed.models import HIDDEN_SIZE, NUM_LAYERS

FILES = (METADATA_FILE, WEIGHTS_FILE)
MODEL = ModelIdentity(name="served", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a good probe."""
    folder = random_family_probe("mlp", width=8).save(tmp_path_factory.mktemp("good") / "tones")
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def folder(tmp_path: Path, good: dict[str, bytes]) -> Path:
    return write(tmp_path / "tones", good)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refused(folder: Path, *says: str) -> str:
    """The message of the refusal, which names the folder; also where an engine starts with the folder."""
    with pytest.raises(ProbeError) as error:
        Probe.load(folder)
    message = str(error.value)
    assert str(folder) in message
    assert all(words in message for words in says), message
    assert len(message) < 1000
    with pytest.raises(ProbeError) as error:
        resolve_config(EngineConfig.parse({"probes": {"tones": str(folder)}}), MODEL)
    assert str(error.value) == f"probe 'tones': {message}"
    return message


def loaded(folder: Path) -> tuple[Probe | None, str]:
    """(probe, "") or (None, the refusal); any other exception is a failure."""
    try:
        return Probe.load(folder), ""
    except ProbeError as error:
        return None, str(error)


def signed(folder: Path, weights: bytes | None = None, **metadata: Any) -> Path:
    """Write the folder again with other contents and the digest that fits them, as an attacker would."""
    found = ProbeMetadata.model_validate_json((folder / METADATA_FILE).read_text()).model_copy(
        update=metadata
    )
    weights = (folder / WEIGHTS_FILE).read_bytes() if weights is None else weights
    fields = {**found.model_dump(mode="json"), "digest": digest_of(weights, found)}
    (folder / METADATA_FILE).write_text(json.dumps(fields))
    (folder / WEIGHTS_FILE).write_bytes(weights)
    return folder


def header(described: Any, size: int = 0) -> bytes:
    """A safetensors file with this header, before `size` zero bytes."""
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize("name", FILES)
def test_truncated_at_any_length(folder: Path, good: dict[str, bytes], name: str) -> None:
    content = good[name]
    lengths = {0, 1, 7, 8, 9, len(content) - 1, *range(0, len(content) - 1, max(1, len(content) // 40))}
    for length in sorted(lengths):
        if content[:length].rstrip() == content.rstrip():
            continue  # only the line's end is gone
        (folder / name).write_bytes(content[:length])
        refused(folder, name)


@given(st.data())
@settings(max_examples=80)
def test_flipped_bits_are_found_or_change_nothing(
    good: dict[str, bytes], scratch: Path, data: st.DataObject
) -> None:
    """Of the metadata only what changes what the tensors do is under the digest: notes may differ."""
    name = data.draw(st.sampled_from(FILES))
    content = bytearray(good[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3, unique=True)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = write(scratch / "flipped", {**good, name: bytes(content)})
    found, refusal = loaded(folder)
    if found is None:
        assert str(folder) in refusal
        return
    assert name == METADATA_FILE
    intact = Probe.load(write(scratch / "intact", good))
    assert found.metadata.digest == intact.metadata.digest
    assert all(torch.equal(found.tensors[key], intact.tensors[key]) for key in intact.tensors)


def test_files_that_lengthened(folder: Path, good: dict[str, bytes]) -> None:
    (folder / WEIGHTS_FILE).write_bytes(good[WEIGHTS_FILE] + b"\0")
    refused(folder, "digest")
    signed(folder)
    refused(folder, WEIGHTS_FILE)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_tensors_that_are_no_floats(folder: Path, dtype: torch.dtype) -> None:
    tensors = {**Probe.load(folder).tensors}
    tensors["w1"] = tensors["w1"].to(dtype)
    signed(folder, save_tensors(tensors))
    refused(folder, WEIGHTS_FILE, "w1", str(dtype).removeprefix("torch."), "floats")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_floats_of_another_width_are_read(folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in Probe.load(folder).tensors.items()}
    found = Probe.load(signed(folder, save_tensors(tensors)))
    assert all(torch.equal(found.tensors[name], tensors[name].float()) for name in tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(folder: Path, value: float) -> None:
    tensors = {name: tensor.clone() for name, tensor in Probe.load(folder).tensors.items()}
    tensors["b2"][1] = value
    signed(folder, save_tensors(tensors))
    refused(folder, WEIGHTS_FILE, "b2", "not finite")


def test_a_double_beyond_float32(folder: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in Probe.load(folder).tensors.items()}
    tensors["b2"][0] = 1e300
    signed(folder, save_tensors(tensors))
    refused(folder, WEIGHTS_FILE, "b2", "not finite")


HUGE = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
HEADERS: dict[str, bytes] = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 2**63),
    "a header of exabytes": struct.pack("<Q", 2**62) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": header([]),
    "a huge shape": header({"w1": HUGE}),
    "a huge shape of nothing": header({"w1": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
    "a product that overflows": header(
        {"w1": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 0]}}
    ),
    "negative offsets": header({"w1": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, 4),
    "shapes of other sizes": header({"w1": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}, 4),
    "an unknown dtype": header({"w1": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, 4),
    "four bits": header({"w1": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, 4),
    "other tensors": header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4),
    "a thousand names": header(
        {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(1000)}
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_that_declare_what_they_do_not_hold(folder: Path, name: str) -> None:
    """Under a digest that fits."""
    signed(folder, HEADERS[name])
    refused(folder, WEIGHTS_FILE)


@pytest.mark.parametrize(
    "metadata",
    [
        "", "null", "[]", '"x"', "{}", "{", "NaN", '{"labels": []}', "[" * 100_000, '{"a":' * 100_000,
        '{"training": ' + "[" * 100_000, '{"schema_version": 1' + "0" * 5000 + "}", "\ufeff{}",
    ],
    ids=["empty", "null", "list", "text", "object", "cut off", "NaN", "no labels", "deep list", "deep object",
         "deep notes", "long number", "BOM"],
)  # fmt: skip
def test_metadata_that_is_none(folder: Path, metadata: str) -> None:
    (folder / METADATA_FILE).write_text(metadata)
    refused(folder, METADATA_FILE)


CHANGES: dict[str, Any] = {
    "labels": [1, [], ["warm", "warm", "dry"], [""], ["warm"], [f"l{i}" for i in range(100_000)], None],
    "layer": [-1, 4, 10**30, "one", 1.5, None],
    "layers": [[1], [3, 1], [99], list(range(100_000))],
    "family": ["linear", "nope", "x" * 10_000, 3],
    "model": [{}, None, {"name": "x", "model_type": "llama", "hidden_size": 10**18, "num_layers": 4}],
    "default_alpha": [{"gradient": "much"}, {"nope": 1.0}, [1]],
    "default_where": [{"prompt": [3, 1]}, {"reply": True}, "prompt"],
    "default_layers": [[0], [-1]],
    "activation_scale": [{"1": 0}, {"9": 1.0}, {"1": -2.0}],
    "metric_scale": [{"variance": {"1": 0}}, {"nope": {"1": 1.0}}, {"variance": {"9": 1.0}}, [], {"": {}}],
    "default_edit": [
        [], {"alpha": "much"}, {"alpha": 1e300}, {"target": ["warm"]}, {"method": ["gradient"]},
        {"layers": [9]}, {"where": [[[[]]]]}, {"compat": "pip-0.1.2"}, {"x" * 10_000: 1},
    ],
    "settings": [{"unavailable": 3}, {"unavailable": [3]}, []],
    "digest": ["", "0" * 64, 3],
    "schema_version": [2, "1"],
    "code": ["print(1)"],
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_metadata_with_a_wrong_field(folder: Path, good: dict[str, bytes], field: str) -> None:
    for value in CHANGES[field]:
        fields = {**json.loads(good[METADATA_FILE]), field: value}
        (folder / METADATA_FILE).write_text(json.dumps(fields))
        refused(folder)


@pytest.mark.parametrize(
    "own",
    [{"hot": 1.0}, {"warm": "much"}, {"warm": -1.0}, {"warm": math.nan}, {"warm": math.inf}, {"warm": 1e300},
     {"warm": None}, {"warm": [1.0]}, ["warm"], 1.0],
    ids=str,
)  # fmt: skip
def test_a_labels_own_strength_that_is_none(folder: Path, good: dict[str, bytes], own: Any) -> None:
    """Beside a default edit that has a strength, as it must."""
    fields = {**json.loads(good[METADATA_FILE]), "default_edit": {"alpha": 0.5}, "label_alpha": own}
    (folder / METADATA_FILE).write_text(json.dumps(fields))
    refused(folder, METADATA_FILE, "label_alpha")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _directory(path: Path) -> None:
    path.mkdir()


def _nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _sparse(path: Path) -> None:
    """A terabyte that takes no space."""
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [_fifo, _loop, _device, _directory, _nowhere, _sparse])
def test_what_is_no_ordinary_file(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink()
    make(folder / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, name)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # kilobytes: nothing of the terabyte was read


def test_the_limits_are_those_that_are_applied(folder: Path) -> None:
    for name, limit in ((METADATA_FILE, MAX_METADATA_BYTES), (WEIGHTS_FILE, MAX_WEIGHTS_BYTES)):
        content = (folder / name).read_bytes()
        with (folder / name).open("r+b") as file:
            file.truncate(limit + 1)
        refused(folder, name, str(limit))
        (folder / name).write_bytes(content)
    Probe.load(folder)


@pytest.mark.parametrize("path", ["gone", "a\0b", "x" * 5000, "tones/probe.json/x", ""])
def test_a_folder_that_is_none(folder: Path, path: str) -> None:
    with pytest.raises(ProbeError):
        Probe.load(folder.parent / path if path else folder.parent)
    shutil.rmtree(folder)
    refused(folder, METADATA_FILE, "No such file")


def test_a_loop_of_folders(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refused(tmp_path / "a", METADATA_FILE)


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / WEIGHTS_FILE).chmod(0)
    refused(folder, WEIGHTS_FILE, "denied")
