"""Control vectors in GGUF files: repeng's and llama.cpp's layer numbers, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import ProbeError
from ksteer_vllm.convert import convert, detect
from ksteer_vllm.probes.probe import Probe
from tests.workbench.convert.sources import LAYERS, D, options, streams, write_gguf


def directions(*layers: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {f"direction.{layer}": torch.randn(D, generator=generator) for layer in layers}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(dtype: torch.dtype, tmp_path: Path) -> None:
    """direction.N is for the output of decoder block N."""
    tensors = {name: tensor.to(dtype) for name, tensor in directions(1, 2, 3).items()}
    path = write_gguf(tmp_path / "honest.gguf", tensors)
    assert detect(path) == "repeng"
    probe = Probe.load(convert(path, options()).save(tmp_path / "out"))
    assert (probe.labels, probe.metadata.layers, probe.metadata.layer) == (("honest",), (1, 2, 3), 2)
    assert probe.metadata.default_alpha == {"add": 1.0}
    assert "notes" not in probe.metadata.training
    for layer in (1, 2, 3):
        assert torch.equal(probe.at(layer)["vectors"], tensors[f"direction.{layer}"].double()[None])


def test_another_model_type_is_said_and_not_refused(tmp_path: Path) -> None:
    """llama.cpp calls a Mistral 'llama': the hint is no proof."""
    probe = convert(write_gguf(tmp_path / "a.gguf", directions(1), hint="mistral"), options())
    assert "'mistral'" in probe.metadata.training["notes"][0]


def test_the_files_that_gguf_writes(tmp_path: Path) -> None:
    """Byte for byte what gguf (0.19.0) writes, called as repeng calls it; and tensors of more dimensions."""
    import gguf

    from ksteer_vllm.convert.gguf import read_gguf

    tensors = directions(1, 3)
    for names, extra in (
        (tensors, {}),
        ({**tensors, "x": torch.arange(6.0).reshape(2, 3)}, {"list": [1, 2]}),
    ):
        writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "controlvector")
        writer.add_string("controlvector.model_hint", "llama")
        writer.add_uint32("controlvector.layer_count", len(names))
        for key, value in extra.items():
            writer.add_array(key, value)
        for name, tensor in names.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        metadata, read = read_gguf(tmp_path / "theirs.gguf")
        assert all(torch.equal(read[name], tensor) for name, tensor in names.items())
        assert {**metadata, **extra} == metadata
        if not extra:
            ours = write_gguf(tmp_path / "ours.gguf", names)
            assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parity
def test_repeng_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """repeng (0.4.0) exports, its own wrapped block adds; on the same block the probe holds the same."""
    np = pytest.importorskip("numpy")
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng is written for numpy 1
    pytest.importorskip("repeng")
    from repeng.control import BlockControlParams, ControlModule  # type: ignore[import-not-found]
    from repeng.extract import ControlVector  # type: ignore[import-not-found]

    vector = ControlVector(
        "llama", {layer: directions(layer)[f"direction.{layer}"].numpy() for layer in (1, 3)}
    )
    vector.export_gguf(tmp_path / "a.gguf")
    probe = convert(tmp_path / "a.gguf", options())
    x = streams()[None]
    for layer in (1, 3):
        block = ControlModule(torch.nn.Identity())
        block.set_control(BlockControlParams(torch.tensor(2.0 * vector.directions[layer])))
        assert torch.allclose(block(x), x + 2.0 * probe.at(layer)["vectors"].float(), atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "changes", "words"),
    [
        (directions(1), {"architecture": "llama"}, "architecture 'llama', expected 'controlvector'"),
        (directions(1), {"version": 1}, "version 1"),
        (directions(1), {"kind": 8}, "Q8_0"),
        (directions(LAYERS), {}, f"layer {LAYERS} of a model with {LAYERS} layers"),
        ({}, {}, "expected a tensor direction.N for each layer"),
        ({"direction.x": torch.zeros(D)}, {}, "'direction.x'; expected direction.N only"),
        ({"weight": torch.zeros(D)}, {}, "'weight'; expected direction.N only"),
        ({"direction.1": torch.zeros(D), "direction.01": torch.zeros(D)}, {}, "for each layer"),
        ({"direction.1": torch.zeros(D - 1)}, {}, rf"direction.1: shape ({D - 1},), expected ({D},)"),
        ({"direction.1": torch.zeros(2, D)}, {}, "direction.1: shape"),
        ({"direction.1": torch.full((D,), float("nan"))}, {}, "vectors: has values that are not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(
    tensors: dict[str, Tensor], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "a.gguf", tensors, **changes)
    with pytest.raises(ProbeError) as refusal:
        convert(path, options())
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_cut_anywhere(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", directions(1, 2))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ProbeError, match=r"a\.gguf: (truncated|not a GGUF file$)"):
            convert(path, options(), "repeng")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (struct.pack("<QQ", 1 << 60, 0), "truncated"),
        (struct.pack("<QQ", 0, 1 << 60), "truncated"),
        (struct.pack("<QQQ", 0, 1, 1 << 60), "truncated"),
        (struct.pack("<QQQcI", 0, 1, 1, b"k", 99), r"99\)? is not a valid GGUFValueType"),
        (struct.pack("<QQQcIIQ", 0, 1, 1, b"k", 9, 4, 1 << 60), "truncated"),
        (struct.pack("<QQQcI", 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 9, "truncated"),
        (struct.pack("<QQQcI", 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 9999, "recursion"),
        (struct.pack("<QQQcI", 1, 0, 1, b"t", 1 << 30), "truncated"),
        (struct.pack("<QQQcIQIQ", 1, 0, 1, b"t", 1, 1 << 62, 0, 0), "truncated"),
        (struct.pack("<QQQcIQIQ", 1, 0, 1, b"t", 1, 1, 0, 1 << 62), "truncated"),
    ],
)
def test_sizes_the_file_does_not_have(body: bytes, words: str, tmp_path: Path) -> None:
    from ksteer_vllm.convert.gguf import read_gguf

    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + body)
    with pytest.raises(ProbeError, match=words):
        read_gguf(tmp_path / "a.gguf")
