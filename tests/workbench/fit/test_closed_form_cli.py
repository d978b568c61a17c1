"""`ksteer fit --method`, `condition` and `inspect` from end to end; all share two runs of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ksteer_vllm import ModelIdentity, ProbeMetadata
from ksteer_vllm.cli import app
from ksteer_vllm.data.positions import REPLY, FirstPositions, Window
from ksteer_vllm.data.rows import LabelledRow, write_rows
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import Activations, collect_activations
from ksteer_vllm.probes.probe import Probe
from tests.support.engines import OPTIONS

runner = CliRunner()
LAYER = 2
FIRST = FirstPositions(3)
METHODS = {"linear": "linear", "caa": "vectors", "random": "vectors", "ace": "ace", "actadd": "vectors"}


@pytest.fixture(scope="module")
def recorded(llama: Path, rows: list[LabelledRow]) -> dict[Window, Activations]:
    """What the engine records at the layer, by window."""
    windows: tuple[Window, ...] = (REPLY, FIRST)
    return {
        window: collect_activations(str(llama), rows, [LAYER], window=window, engine_options=OPTIONS)
        for window in windows
    }


@pytest.fixture(scope="module")
def folder(
    llama: Path,
    rows: list[LabelledRow],
    recorded: dict[Window, Activations],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """data.jsonl and one folder per method, written by the command."""
    found = tmp_path_factory.mktemp("methods")
    data = write_rows(found / "data.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        use(recorded, patch)
        for method in METHODS:
            more = ["--first", "3"] if method == "actadd" else []
            command = ["fit", str(llama), str(data), "--out", str(found / method), "--method", method]
            result = runner.invoke(app, [*command, *more, "--max-model-len", "256"])
            assert result.exit_code == 0, result.output
            assert f"{method} of layer 2, labels dry, warm:" in " ".join(result.output.split())
            assert "held-out tokens" in result.output
    return found


def use(recorded: Mapping[Window, Activations], patch: pytest.MonkeyPatch) -> None:
    """Fits find these activations instead of starting an engine each."""

    def at_hand(
        model: str, rows: Sequence[LabelledRow], layers: Sequence[int], *, window: Window, **_: Any
    ) -> Activations:
        assert list(layers) == [LAYER]
        return recorded[window]

    patch.setattr("ksteer_vllm.fit.task.collect_activations", at_hand)


def test_the_first_positions_of_the_text_alone_equal_transformers(
    llama: Path, rows: list[LabelledRow], recorded: dict[Window, Activations]
) -> None:
    """hidden_states[layer + 1] of the reply without its prompt; float32, as in test_activations."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(llama)
    oracle = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    found = recorded[FIRST]
    for index, row in enumerate(rows):
        tokens = tokenizer.encode(row.reply)[:3]
        with torch.no_grad():
            states = oracle(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        mine = found.row == index
        assert found.position[mine].tolist() == list(range(len(tokens)))
        torch.testing.assert_close(found.streams[LAYER][mine], states[LAYER + 1][0], rtol=1e-4, atol=1e-4)


def test_special_tokens_around_the_text_are_left_out() -> None:
    class Tokenizer:
        all_special_ids = (1, 2, 3)
        unk_token_id = 3

        def encode(self, text: str) -> list[int]:
            return [1, *(3 if word == "?" else 10 + len(word) for word in text.split()), 2]

    row = LabelledRow(prompt="p", reply="? bb ccc", labels=())
    assert FirstPositions(2).of(Tokenizer(), row) == ([1, 3, 12], 1, 3)
    assert FirstPositions(9).of(Tokenizer(), row) == ([1, 3, 12, 13], 1, 4)
    with pytest.raises(DataError, match="reply: no tokens"):
        FirstPositions(1).of(Tokenizer(), row.model_copy(update={"reply": ""}))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_its_family(folder: Path, method: str, rows: list[LabelledRow]) -> None:
    probe = Probe.load(folder / method)
    metadata = probe.metadata
    assert metadata.family == METHODS[method]
    assert metadata.layer == LAYER
    assert metadata.training["method"] == method
    assert metadata.training["rows"] == len(rows)
    assert set(metadata.activation_scale) == {LAYER}
    assert metadata.default_alpha == {}
    assert metadata.default_where == ({"prompt": [0, 3]} if method == "actadd" else None)
    auroc = metadata.metrics["tokens"]["mean"]["auroc"]
    assert auroc > 0.7 or method == "random"


@pytest.mark.parametrize("method", METHODS)
def test_inspect_shows_every_family(folder: Path, method: str) -> None:
    result = runner.invoke(app, ["inspect", str(folder / method)])
    assert result.exit_code == 0, result.output
    probe = Probe.load(folder / method)
    for name, tensor in probe.tensors.items():
        assert name in result.output
        assert f"{tensor.norm():.4g}" in result.output
    for text in (probe.metadata.family, "dry, warm", "activation scale", "auroc", "data_digest"):
        assert text in result.output


def test_inspect_shows_tensors_of_several_layers_and_many_labels(tmp_path: Path) -> None:
    labels = tuple(f"f{index}" for index in range(25))
    model = ModelIdentity(name="m", model_type="llama", hidden_size=8, num_layers=4)
    metadata = ProbeMetadata(
        family="vectors", labels=labels, layer=1, layers=(1, 3), model=model, metrics={"loss": 0.5}
    )
    vectors = torch.arange(400.0).reshape(2, 25, 8)
    Probe(metadata, {"vectors": vectors}).save(tmp_path)
    output = runner.invoke(app, ["inspect", str(tmp_path)]).output
    for text in ("decoder block 1, 3 of 4", "2 x 25 x 8", "5 more", "loss", f"{vectors[:, 19].norm():.4g}"):
        assert text in output
    assert "vector f19" in output
    assert "vector f20" not in output


@pytest.mark.parametrize("method", ["linear", "caa"])
def test_a_condition_is_ready_to_paste(
    llama: Path,
    folder: Path,
    recorded: dict[Window, Activations],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    use(recorded, monkeypatch)
    command = ["condition", str(llama), str(folder / "data.jsonl"), str(folder / method), "--label", "warm"]
    result = runner.invoke(app, [*command, "--name", "tone"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    (side,) = set(found) - {"probe", "label"}
    assert found == {"probe": "tone", "label": "warm", side: found[side]}
    assert side == "above" or (side == "below" and method == "caa")
    assert -1 < found[side] < 1
    for text in ("precision", "recall", "f1", "tokens, were all steered"):
        assert text in result.output


def test_a_method_or_option_that_does_not_exist_is_one_line(llama: Path, folder: Path) -> None:
    data = str(folder / "data.jsonl")
    for options, text in (
        (["--method", "magic"], "method: unknown 'magic'; known: mlp, linear, caa, actadd, random, ace"),
        (["--method", "caa", "--first", "3"], "method 'caa' takes no first; it takes: seed"),
        (["--layer", "4"], "layer: the model has no layer 4; its layers are 0 to 3"),
    ):
        result = runner.invoke(app, ["fit", str(llama), data, "--out", "x", *options])
        assert result.exit_code == 2
        assert result.output.startswith(f"ksteer: {text}")
        assert len(result.output.splitlines()) == 1
