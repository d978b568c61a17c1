"""LoReFT folders: orientation of the tensors, the source's forward, and what is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import ProbeError
from ksteer_vllm.convert import convert, detect
from ksteer_vllm.probes.probe import Probe
from tests.workbench.convert.sources import LAYERS, TOLERANCE, D, Loreft, options, streams, write_pyreft


def edited(probe: Probe, layer: int, x: Tensor) -> Tensor:
    """x + R^T (W x + b - R x), the family's definition, float64."""
    t = {name: tensor[0] for name, tensor in probe.at(layer).items()}
    x = x.double()
    return x + (x @ t["weight"].T + t["bias"] - x @ t["rotation"].T) @ t["rotation"]


def parts() -> dict[int, Loreft]:
    return {1: Loreft.random(3, 1), 3: Loreft.random(3, 2)}


def test_round_trip(tmp_path: Path) -> None:
    folder = write_pyreft(tmp_path / "reft", parts())
    assert detect(folder) == "pyreft"
    probe = Probe.load(convert(folder, options()).save(tmp_path / "out"))
    assert (probe.labels, probe.metadata.layers) == (("loreft",), (1, 3))
    x = streams()
    for layer, part in parts().items():
        assert (part(x) - x).abs().max() > 0.1  # else the comparison says nothing
        assert torch.allclose(edited(probe, layer, x).float(), part(x), **TOLERANCE)
    single = convert(folder, options(layers=(3,), labels=("polite",)))
    assert (single.labels, single.metadata.layers, single.metadata.layer) == (("polite",), (), 3)
    assert torch.allclose(edited(single, 0, x).float(), parts()[3](x), **TOLERANCE)


@pytest.mark.parametrize(
    "name", ["layer.1.comp.block_output.unit.pos.nunit.1#0", "comp_model_layers[1]_output_unit_pos_nunit_1#0"]
)
def test_other_file_names(name: str, tmp_path: Path) -> None:
    """Of older pyvene versions, and of components named by their path (model.layers[1].output)."""
    folder = write_pyreft(tmp_path, {1: Loreft.random(3, 1)})
    next(folder.glob("*.bin")).rename(folder / f"intkey_{name}.bin")
    assert convert(folder, options()).metadata.layer == 1


@pytest.mark.parity
def test_pyreft_itself(tmp_path: Path) -> None:
    """Saved and run by pyreft (0.1.0): its intervention's forward, and the files the other tests write."""
    pyreft = pytest.importorskip("pyreft")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=D,
        intermediate_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
    )
    torch.manual_seed(0)
    theirs = {
        layer: pyreft.LoreftIntervention(embed_dim=D, low_rank_dimension=3, dtype=torch.float32)
        for layer in (1, 3)
    }
    representations = [
        {"layer": layer, "component": "block_output", "low_rank_dimension": 3, "intervention": part}
        for layer, part in theirs.items()
    ]
    model = pyreft.get_reft_model(
        transformers.LlamaForCausalLM(config), pyreft.ReftConfig(representations=representations)
    )
    model.save(str(tmp_path / "theirs"))
    ours = write_pyreft(tmp_path / "ours", parts())
    assert sorted(os.listdir(ours)) == sorted(os.listdir(tmp_path / "theirs"))
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert {**written, **json.loads((ours / "config.json").read_text())} == written
    probe = convert(tmp_path / "theirs", options())
    x = streams()
    for layer, part in theirs.items():
        after = part(x).detach()
        assert (after - x).abs().max() > 0.1
        assert torch.allclose(edited(probe, layer, x).float(), after, **TOLERANCE)


def test_rounded_to_bfloat16(tmp_path: Path) -> None:
    """A checkpoint of a model trained in bfloat16: its columns are orthonormal to rounding only."""
    part = Loreft(*(tensor.bfloat16() for tensor in vars(Loreft.random(3, 1)).values()))
    probe = convert(write_pyreft(tmp_path, {1: part}), options())
    assert torch.equal(probe.tensors["rotation"][0], part.rotate_layer.float().T)


@pytest.mark.parametrize("kind", ["NoreftIntervention", "ConsreftIntervention", "DireftIntervention"])
def test_other_interventions(kind: str, tmp_path: Path) -> None:
    types = ["<class 'pyreft.interventions.LoreftIntervention'>", f"<class 'pyreft.interventions.{kind}'>"]
    folder = write_pyreft(tmp_path, parts(), intervention_types=types)
    with pytest.raises(ProbeError, match=rf"config\.json: intervention .{kind}.; only LoreftIntervention"):
        convert(folder, options())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"intervention_types": None}, "no list of intervention_types"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'; only 'linear'"),
        ({"representations": [{"act_fn": "relu"}]}, "act_fn 'relu'; only 'linear'"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=words):
        convert(write_pyreft(tmp_path, parts(), **config), options())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("intkey_layer_1_comp_mlp_output_unit_pos_nunit_1#0", "component 'mlp_output'"),
        ("intkey_layer_1_comp_block_output_unit_h_pos_nunit_1#0", "unit 'h_pos'"),
        ("intkey_layer_1_comp_block_output_unit_pos_nunit_2#0", "unit 'pos' of 2"),
        ("intkey_layer_3_comp_block_output_unit_pos_nunit_1#1", "several interventions at layer 3"),
        ("intkey_comp_model_layers[1]_mlp_output_unit_pos_nunit_1#0", "does not write"),
        ("intkey_else", "does not write"),
        (f"intkey_layer_{LAYERS}_comp_block_output_unit_pos_nunit_1#0", f"layer {LAYERS} of a model"),
    ],
)
def test_sites_that_are_refused(name: str, words: str, tmp_path: Path) -> None:
    folder = write_pyreft(tmp_path, parts())
    next(folder.glob("intkey_layer_1_*")).rename(folder / f"{name}.bin")
    with pytest.raises(ProbeError) as refusal:
        convert(folder, options(), "pyreft")
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(3, D - 1)}, "weight: torch.float32 of shape"),
        ({"bias": torch.zeros(3, 1)}, "bias: torch.float32 of shape (3, 1), expected floats of shape (3,)"),
        ({"bias": torch.zeros(0)}, "weight: torch.float32"),
        (
            {"rotate_layer": Loreft.random(3, 1).rotate_layer.T},
            "rotate_layer: torch.float32 of shape (3, 16)",
        ),
        ({"rotate_layer": torch.ones(D, 3)}, "rotate_layer: columns not orthonormal"),
        ({"bias": torch.tensor([0.0, float("nan"), 0.0])}, "bias: has values that are not finite"),
        ({"rotate_layer": torch.full((D, 3), float("nan"))}, "rotate_layer: has values that are not finite"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, "bias: torch.int64"),
        (
            {"rotate_layer.parametrizations.weight.original": torch.zeros(1)},
            "holds bias, rotate_layer, rotate",
        ),
        ({"bias": "text"}, "expected a mapping of names to tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write_pyreft(tmp_path, {1: Loreft.random(3, 1)})
    file = next(folder.glob("*.bin"))
    torch.save({**vars(Loreft.random(3, 1)), **change}, file)
    with pytest.raises(ProbeError) as refusal:
        convert(folder, options())
    assert words in str(refusal.value)
    assert str(file) in str(refusal.value)


def test_layers_of_different_rank(tmp_path: Path) -> None:
    folder = write_pyreft(tmp_path, {1: Loreft.random(2, 1), 3: Loreft.random(3, 1)})
    with pytest.raises(ProbeError, match="layers of ranks 2, 3"):
        convert(folder, options())
    assert convert(folder, options(layers=(3,))).tensors["bias"].shape == (1, 3)


def test_a_pickle_that_runs_something_does_not(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = write_pyreft(tmp_path / "reft", {1: Loreft.random(3, 1)})
    file = next(folder.glob("*.bin"))
    torch.save({"weight": Evil()}, file)
    with pytest.raises(ProbeError, match=r"expected tensors saved with torch\.save and nothing else"):
        convert(folder, options())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ProbeError, match="expected tensors saved"):
        convert(folder, options())
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_interventions(tmp_path: Path) -> None:
    folder = write_pyreft(tmp_path, parts())
    for file in folder.glob("*.bin"):
        file.unlink()
    with pytest.raises(ProbeError, match=r"no intkey_\*\.bin file"):
        convert(folder, options(), "pyreft")
    (folder / "config.json").write_text("{")
    with pytest.raises(ProbeError, match=r"config\.json: not valid JSON"):
        convert(folder, options(), "pyreft")
