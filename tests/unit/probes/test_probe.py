"""Probe folders: written, read back, and refused when they are not what they say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ksteer_vllm import Probe, ProbeError, ProbeMetadata
from ksteer_vllm.versions import VERSION
from testbed.probes import random_probe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_probe(default_alpha={"gradient": 2.5}, training={"epochs": 3}).save(tmp_path / "probe")


def test_round_trip(folder: Path) -> None:
    probe, loaded = random_probe(default_alpha={"gradient": 2.5}, training={"epochs": 3}), Probe.load(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.safetensors"]
    for name, tensor in probe.tensors.items():
        assert torch.equal(tensor, loaded.tensors[name]), name
    assert loaded.metadata.model_copy(update={"digest": ""}) == probe.metadata
    assert len(loaded.metadata.digest) == 64
    assert loaded.metadata.metric_layers == {"variance": (1,)}  # which the tensors alone show
    assert Probe.load_metadata(folder) == loaded.metadata.model_copy(update={"metric_layers": {}})


def test_saving_again_replaces_and_is_reproducible(folder: Path, tmp_path: Path) -> None:
    digest = Probe.load(folder).metadata.digest
    assert Probe.load(Probe.load(folder).save(tmp_path / "copy")).metadata.digest == digest
    random_probe(seed=9).save(folder)
    assert Probe.load(folder).metadata.digest != digest


def test_the_digest_covers_what_changes_the_effect_and_nothing_else(tmp_path: Path) -> None:
    probe = random_probe()
    digest = Probe.load(probe.save(tmp_path)).metadata.digest

    def after(**changes: Any) -> str:
        return Probe.load(probe.with_metadata(**changes).save(tmp_path)).metadata.digest

    assert after(default_alpha={"add": 3.0}, training={"x": 1}, metrics={"y": 2}) == digest
    assert after(model={**probe.metadata.model.model_dump(), "name": "elsewhere"}) == digest
    assert after(labels=("cold", "warm", "dry")) != digest
    assert after(layer=2) != digest
    assert after(model={**probe.metadata.model.model_dump(), "model_type": "qwen2"}) != digest
    moved = replace(probe, tensors={**probe.tensors, "b3": probe.tensors["b3"] + 1e-3}).save(tmp_path)
    assert Probe.load(moved).metadata.digest != digest


def test_folding_is_exact(folder: Path) -> None:
    """Logits of the standardised probe, by hand in float64, against the folded one: rounding alone."""
    probe = Probe.load(folder)
    x = torch.randn(7, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    t = {name: tensor.double() for name, tensor in probe.tensors.items()}
    z = (x - t["input_mean"]) / t["input_std"]
    h = torch.relu(torch.relu(z @ t["w1"].T + t["b1"]) @ t["w2"].T + t["b2"])
    assert torch.allclose(probe.logits(x), h @ t["w3"].T + t["b3"], rtol=1e-12, atol=1e-12)
    assert probe.logits(x.float()).dtype == torch.float32
    assert torch.allclose(probe.logits(x.float()).double(), probe.logits(x), atol=1e-3)


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ProbeError, match=f"{name}: No such file"):
        Probe.load(folder)


def test_a_missing_folder_says_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"nowhere.*No such file.*ksteer fit"):
        Probe.load(tmp_path / "nowhere")


def test_one_flipped_bit(folder: Path) -> None:
    path = folder / "probe.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ProbeError, match="digest"):
        Probe.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"labels": []}, "labels"),
        ({"labels": ["a", "a", "b"]}, "named twice"),
        ({"layer": -1}, "layer"),
        ({"layer": 4}, "layer: the model has no layer 4; its layers are 0 to 3"),
        ({"site": "input"}, "site"),
        ({"activation": "gelu"}, "activation"),
        ({"default_alpha": {"reflect": 1}}, "default_alpha"),
        ({"extra": 1}, "extra"),
        ({"model": None}, "model"),
        ({"layer": 2}, "digest"),
        ({"labels": ["warm", "cold", "other"]}, "digest"),
        ({"digest": "0" * 64}, "digest"),
    ],
    ids=str,
)
def test_metadata_that_does_not_hold(folder: Path, change: dict[str, Any], words: str) -> None:
    path = folder / "probe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ProbeError, match=words) as refusal:
        Probe.load(folder)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"schema_version": 2},
            f"schema_version '2'; ksteer-vllm {VERSION} reads version 1: upgrade ksteer-vllm, or make the "
            "probe again (ksteer fit, ksteer convert)",
        ),
        (
            {"schema_version": 0},
            f"schema_version '0'; ksteer-vllm {VERSION} reads version 1: make the probe again (ksteer fit, ",
        ),
        ({"schema_version": None}, f"schema_version 'None'; ksteer-vllm {VERSION} reads version 1: make"),
        ({"sharpness": 1}, f"sharpness: unknown field; allowed: {', '.join(ProbeMetadata.model_fields)}; if"),
        ({"default_alfa": {}}, f"did you mean 'default_alpha'?; if a newer ksteer-vllm than {VERSION} wrote"),
        ({"model": {"name": "m", "model_type": "llama", "hidden_size": 64}},
         f"model.num_layers: required; if an older ksteer-vllm than {VERSION} wrote the folder, make the"),
    ],
    ids=str,
)  # fmt: skip
def test_folders_of_other_versions_say_what_to_do(folder: Path, change: dict[str, Any], says: str) -> None:
    path = folder / "probe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ProbeError) as refusal:
        Probe.load(folder)
    assert says in str(refusal.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_metadata_that_is_no_json(folder: Path, text: str) -> None:
    (folder / "probe.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProbeError, match=r"probe\.json"):
        Probe.load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("w1", torch.zeros(48, 32), r"w1: shape \(48, 32\), expected \(48, 64\)"),
        ("b2", torch.zeros(3), "b2: shape"),
        ("w3", torch.zeros(2, 43), "w3: shape"),
        ("label_vectors", torch.zeros(3, 8), "label_vectors: shape"),
        ("input_std", torch.zeros(64), "input_std: must be > 0"),
        ("b1", torch.full((48,), float("nan")), "b1: has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit(name: str, tensor: torch.Tensor, words: str) -> None:
    probe = random_probe()
    with pytest.raises(ProbeError, match=words):
        replace(probe, tensors={**probe.tensors, name: tensor})


def test_a_weights_file_of_something_else(folder: Path) -> None:
    """With a digest that matches: names are checked, not only bytes."""
    from ksteer_vllm.probes.metadata import digest_of

    tensors = load_file(folder / "probe.safetensors")
    tensors["w9"] = tensors.pop("w1")
    save_file(tensors, folder / "probe.safetensors")
    metadata = Probe.load_metadata(folder)
    digest = digest_of((folder / "probe.safetensors").read_bytes(), metadata)
    (folder / "probe.json").write_text(metadata.model_copy(update={"digest": digest}).model_dump_json())
    with pytest.raises(ProbeError, match=r"holds .*'w9'.*expected"):
        Probe.load(folder)


def test_no_pickle_is_read(folder: Path) -> None:
    from ksteer_vllm.probes.metadata import digest_of

    torch.save({"w1": torch.zeros(1)}, folder / "probe.safetensors")
    metadata = Probe.load_metadata(folder)
    digest = digest_of((folder / "probe.safetensors").read_bytes(), metadata)
    (folder / "probe.json").write_text(metadata.model_copy(update={"digest": digest}).model_dump_json())
    with pytest.raises(ProbeError, match=r"probe\.safetensors"):
        Probe.load(folder)


def test_a_folder_can_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = shutil.move(folder, tmp_path / "moved")
    assert Probe.load(moved).labels == ("warm", "cold", "dry")


def test_layers_without_tensors_of_their_own_are_refused() -> None:
    probe = random_probe()
    with pytest.raises(ProbeError, match=r"w1: shape .*\(layers h d\)"):
        probe.with_metadata(layers=(probe.metadata.layer,))
