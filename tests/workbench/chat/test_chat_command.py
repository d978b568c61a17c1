"""`ksteer chat` as it is typed: its options, and one conversation through standard input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.demo.lexicon import TONES
from testbed.probes import random_probe
from testbed.serving import START_LIMIT, child_environment
from tests.support.engines import GIB_OF_CACHE

ALPHA = 2.0


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random probe of the shipped model."""
    folder = tmp_path_factory.mktemp("chat") / "tones"
    found = random_probe(
        layer=2, labels=TONES, hidden_size=128, num_layers=6, default_alpha={"gradient": ALPHA}
    )
    found.save(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("no/such/folder",), "a probe folder is what `ksteer fit` writes"),
        (("PROBE",), "--model: required: the probe was fitted on"),
        (("PROBE", "--edit", "[1]"), "edit: expected a JSON object"),
        (("PROBE", "--edit", "{"), "edit: not valid JSON"),
        (("PROBE", "--chat-template-kwargs", "[1]"), "--chat-template-kwargs: expected a JSON object"),
        (("tones", "--url", "http://127.0.0.1:9", "--model", "m"), "a running server has its own model"),
        (("tones", "--url", "http://127.0.0.1:9"), "--url: http://127.0.0.1:9"),
        (("PROBE", "--temperature", "-1"), "--temperature: expected a number at least 0"),
    ],
)
def test_what_cannot_be_is_one_line(probe: Path, arguments: tuple[str, ...], says: str) -> None:
    given = [str(probe) if argument == "PROBE" else argument for argument in arguments]
    result = CliRunner().invoke(app, ["chat", *given])
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.slow
def test_a_conversation_through_standard_input(probe: Path, tmp_path: Path) -> None:
    """Greedy, so that a reply is unsteered if and only if it is the one asked for as such."""
    file = tmp_path / "chat.json"
    lines = [
        "How do I repair my kettle?", "/plain", "/casual 1", "/again", "/casul 1", "/concise -0.5",
        "/sliders", "/reset", "Where do I buy a drum?", f"/save {file}",
    ]  # fmt: skip
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from ksteer_vllm.cli import app; app()", "chat", str(probe)),
            *("--model", str(MODEL_DIR), "--max-model-len", "256", "--dtype", "float32"),
            *("--temperature", "0", "--max-tokens", "24"),
        ],
        input="\n".join(lines),
        env=child_environment(GIB_OF_CACHE),
        timeout=START_LIMIT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"{MODEL_DIR}, steered by {probe}. Labels: ")
    assert "\n> How do I repair my kettle?\n[unsteered]\n" in done.stdout
    assert "/casul: unknown; did you mean /casual? Labels: " in done.stdout
    saved = json.loads(file.read_text())
    first, plain, steered = saved["earlier"][0]["replies"]
    assert first["text"] == plain["text"] != steered["text"]
    assert steered["spec"]["target"] == {"casual": 1.0}
    (second,) = saved["exchanges"]
    assert second["replies"][0]["spec"]["avoid"] == {"concise": 0.5}
    for reply in (first, steered, second["replies"][0]):
        assert reply["text"]
        assert reply["text"] in done.stdout
