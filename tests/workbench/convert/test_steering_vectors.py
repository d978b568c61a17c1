"""SteeringVectors: the same numbers at the same layers, added to the block's output."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import ProbeError
from ksteer_vllm.convert import convert, detect
from ksteer_vllm.probes.probe import Probe
from tests.workbench.convert.sources import LAYERS, D, SteeringVector, at_home, options


def vectors(*layers: int, dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {layer: torch.randn(D, generator=generator).to(dtype) for layer in layers}


def saved(path: Path, value: Any) -> Path:
    with at_home():
        if path.suffix == ".pkl":
            path.write_bytes(pickle.dumps(value))
        else:
            torch.save(value, path)
    return path


@pytest.mark.parametrize("name", ["happy.pkl", "happy.pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A SteeringVector pickled and torch.saved as its users do (steering-vectors 0.12.2 has no save)."""
    activations = vectors(0, 2, 3, dtype=dtype)
    path = saved(tmp_path / name, SteeringVector(activations))
    assert detect(path) == "steering-vectors"
    probe = Probe.load(convert(path, options()).save(tmp_path / "out"))
    assert (probe.labels, probe.metadata.layers, probe.metadata.layer) == (("happy",), (0, 2, 3), 2)
    assert probe.metadata.default_alpha == {"add": 1.0}  # its multiplier
    for layer, vector in activations.items():
        assert torch.equal(probe.at(layer)["vectors"], vector.double()[None])


@pytest.mark.parametrize("wrap", ["mapping", "fields", "rows"])
def test_other_shapes_of_the_same(wrap: str, tmp_path: Path) -> None:
    activations = vectors(1, 2)
    value: Any = {
        "mapping": activations,
        "fields": {"layer_activations": activations, "layer_type": "decoder_block"},
        "rows": {layer: vector[None] for layer, vector in activations.items()},
    }[wrap]
    probe = convert(saved(tmp_path / "a.pt", value), options(labels=("x",)), "steering-vectors")
    assert probe.labels == ("x",)
    assert torch.equal(probe.tensors["vectors"][:, 0], torch.stack([activations[1], activations[2]]))
    assert bool(probe.metadata.training.get("notes")) == (wrap != "fields")  # does the file name its site


def test_choosing_layers(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", SteeringVector(vectors(0, 1, -1)))
    assert convert(path, options()).metadata.layers == (0, 1, LAYERS - 1)
    chosen = convert(path, options(layers=(3, 1), layer=1))
    assert (chosen.metadata.layers, chosen.metadata.layer) == ((1, 3), 1)
    single = convert(path, options(layers=(1,)))
    assert (single.metadata.layers, single.metadata.layer) == ((), 1)
    assert torch.equal(single.tensors["vectors"][0], vectors(0, 1)[1])
    for changes, words in (
        ({"layers": (2,)}, "no layer 2; it has 0, 1, 3"),
        ({"layer": 2}, "no layer 2; it has 0, 1, 3"),
        ({"labels": ("a", "b")}, "labels: expected 1, got 2"),
    ):
        with pytest.raises(ProbeError, match=words):
            convert(path, options(**changes))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (SteeringVector(vectors(1), "mlp"), "layer_type 'mlp'; only 'decoder_block'"),
        (SteeringVector(vectors(LAYERS)), f"layer {LAYERS} of a model with {LAYERS} layers"),
        (SteeringVector(vectors(3, -1)), "layer -1: expected one vector"),
        (SteeringVector({1: torch.zeros(D + 1)}), f"vectors of length {D + 1}, expected {D}"),
        (SteeringVector({1: torch.zeros(2, D)}), "layer 1: expected one vector"),
        (SteeringVector({1: torch.zeros(D, dtype=torch.int64)}), "expected a float tensor"),
        (SteeringVector({1: [0.0] * D}), "expected a tensor, found list"),  # type: ignore[dict-item]
        (SteeringVector({1: torch.full((D,), float("inf"))}), "vectors: has values that are not finite"),
        (SteeringVector({}), "expected distinct layers, found none"),
        ({"a": torch.zeros(D)}, "expected layer numbers, found 'a'"),
        (torch.zeros(D), "expected a SteeringVector or"),
        ({}, "expected a SteeringVector or"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(value: Any, words: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", value)
    with pytest.raises(ProbeError) as refusal:
        convert(path, options(), "steering-vectors")
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parity
def test_the_package_itself(tmp_path: Path) -> None:
    """steering-vectors' own hook on a small Llama: what it adds to each block is what the probe holds."""
    package = pytest.importorskip("steering_vectors")
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
    model = transformers.LlamaForCausalLM(config).eval()
    theirs = package.SteeringVector(vectors(1, 3))
    torch.save(theirs, tmp_path / "a.pt")
    probe = convert(tmp_path / "a.pt", options())
    for layer in (1, 3):
        alone = package.SteeringVector({layer: theirs.layer_activations[layer]})
        plain = _output(model, layer)
        with alone.apply(model):
            added = _output(model, layer) - plain
        expected = probe.at(layer)["vectors"].float().expand_as(added)
        assert torch.allclose(added, expected, atol=1e-5)  # one float32 addition and its subtraction


@torch.no_grad()
def _output(model: Any, layer: int) -> Tensor:
    """[1, 3, D]: what decoder block `layer` hands on."""
    seen: list[Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda *call: seen.append((call[2][0] if isinstance(call[2], tuple) else call[2]).clone())
    )
    model(torch.tensor([[1, 2, 3]]))
    handle.remove()
    return seen[0]
