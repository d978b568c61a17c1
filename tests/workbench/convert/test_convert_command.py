"""`ksteer convert` from end to end, and how it refuses: one line, exit status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from ksteer_vllm import ModelIdentity
from ksteer_vllm.cli.convert import Format, convert
from ksteer_vllm.convert import FORMATS
from ksteer_vllm.probes.probe import Probe
from tests.workbench.convert.sources import LAYERS, D, Loreft, write_gguf, write_pyreft

app = typer.Typer()
app.command()(convert)

MODEL = ["--model-type", "llama", "--hidden-size", str(D), "--num-layers", str(LAYERS)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "honest.gguf", {f"direction.{n}": torch.ones(D) * n for n in (1, 2, 3)})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_names_of_the_formats() -> None:
    assert [name.value for name in Format] == ["auto", *FORMATS]


def test_it_writes_a_folder(source: Path, tmp_path: Path) -> None:
    result = run(
        source, "--out", tmp_path / "out", *MODEL, "--layers", "1,2-3", "--layer", 3, "--labels", "frank"
    )
    assert result.exit_code == 0, result.output
    assert result.output == f"vectors of layers 1, 2, 3, labels frank, from repeng: {tmp_path / 'out'}\n"
    probe = Probe.load(tmp_path / "out")
    assert (probe.metadata.layer, probe.metadata.layers) == (3, (1, 2, 3))
    assert probe.metadata.model == ModelIdentity(
        name="llama", model_type="llama", hidden_size=D, num_layers=LAYERS
    )
    assert probe.metadata.training["converted_from"] == "repeng"
    assert str(tmp_path) not in (tmp_path / "out" / "probe.json").read_text()


def test_the_model_from_its_folder(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": D,
        "intermediate_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "vocab_size": 32,
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    result = run(source, "--out", tmp_path / "out", "--model", tmp_path / "model", "--format", "repeng")
    assert result.exit_code == 0, result.output
    model = Probe.load(tmp_path / "out").metadata.model
    assert (model.model_type, model.hidden_size, model.num_layers) == ("llama", D, LAYERS)
    result = run(source, "--out", tmp_path / "out", "--model", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert result.output.startswith(f"ksteer: --model {tmp_path / 'nowhere'}: ")


def test_notes_are_shown(tmp_path: Path) -> None:
    folder = write_pyreft(tmp_path / "reft", {1: Loreft.random(2, 1)})
    result = run(folder, "--out", tmp_path / "out", *MODEL)
    assert result.exit_code == 0
    assert "note: the checkpoint does not record act_fn: taken as linear\n" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "m", *MODEL], "--model: give either --model alone"),
        ([], "--model: required, or all of"),
        (MODEL[:4], "--model: required, or all of"),
        ([*MODEL, "--layers", "3-1"], "--layers: '3-1': a range must go up"),
        ([*MODEL, "--layers", "a"], "--layers: 'a'; expected numbers"),
        ([*MODEL, "--layers", "0-999999999"], "a range must go up, by at most 10000"),
        ([*MODEL, "--features", "1,-2"], "--features: '-2'; expected numbers"),
        ([*MODEL, "--layers", "0"], "honest.gguf: no layer 0; it has 1, 2, 3"),
        ([*MODEL, "--format", "pyreft"], "config.json: "),
        ([*MODEL, "--features", "1"], "features: only saelens has them"),
        ([*MODEL, "--labels", "a,a"], "labels: expected 1, got 2"),
    ],
    ids=str,
)
def test_errors_are_one_line(arguments: list[str], words: str, source: Path, tmp_path: Path) -> None:
    result = run(source, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert result.output.startswith("ksteer: ")
    assert words in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_sources_that_are_not_there_or_not_known(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "absent", "absent: No such file or directory"),
        (tmp_path / "text.txt", "text.txt: not recognised; say what it is with --format, one of k-steering"),
        (tmp_path / "empty", "empty: not recognised"),
    ):
        result = run(path, "--out", tmp_path / "out", *MODEL)
        assert result.exit_code == 2
        assert words in result.output
    for name in FORMATS:
        result = run(tmp_path / "empty", "--out", tmp_path / "out", *MODEL, "--format", name)
        assert result.exit_code == 2, name
        assert result.output.startswith(f"ksteer: {tmp_path / 'empty'}")
    result = run(source, "--out", tmp_path / "text.txt" / "out", *MODEL)
    assert (result.exit_code, "Not a directory" in result.output) == (2, True)
