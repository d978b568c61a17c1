"""`ksteer fit --calibrate` from end to end on the shipped model, and how the one-command roads refuse."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ksteer_vllm import Probe
from ksteer_vllm.cli import app
from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.demo.task import labelled_text
from tests.support.engines import GIB_OF_CACHE

runner = CliRunner()
TONES = ("casual", "cautious")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as users have it: prompt, response, label; the instruction that asked for the tone is gone."""
    path = tmp_path_factory.mktemp("knob") / "replies.csv"
    rows = [
        row for row in labelled_text(1200) if len(row.labels) == 1 and row.labels[0] in (*TONES, "expert")
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "response", "label"])
        table.writerows([row.prompt[-1].content, row.spoken, row.labels[0]] for row in rows)  # type: ignore[union-attr]
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    ksteer = Path(sys.executable).with_name("ksteer")  # vLLM needs a standard output with a file number
    return subprocess.run(
        [ksteer, *map(str, arguments)],
        env={**os.environ, **GIB_OF_CACHE, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.slow
def test_replies_to_a_calibrated_probe_in_one_command(data: Path) -> None:
    out = data.parent / "tones"
    command = [
        "fit", MODEL_DIR, data, "--calibrate", "--quick", "--out", out, "--labels", ",".join(TONES),
        "--layers", "1,2", "--strengths", "0.25,0.5", "--max-model-len", "256",
        "--dtype", "float32",
    ]  # fmt: skip
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    probe = Probe.load(out)
    assert probe.metadata.layers == (1, 2)
    assert probe.metadata.training["prompts"]["raw"] is False
    assert probe.metadata.training["linear_control"]["auroc"] > 0.9
    edit = probe.metadata.default_edit
    assert edit is not None, done.stdout
    assert edit["alpha"] in (0.25 / 8, 0.5 / 8)  # over 8 steps
    found = json.loads((out / "knob" / "results.json").read_text())
    assert set(found["figures"]) == set(TONES)
    for figures in found["figures"].values():
        assert figures["shares"]["steered"]["count"] == figures["shares"]["unsteered"]["count"] == 20
        assert figures["gain"]["low"] > 0
    assert "vllm serve" in done.stdout
    again = run(*command)
    assert again.returncode == 0
    assert "20 of 20, in" not in again.stderr  # every reply was kept
    assert json.loads((out / "knob" / "results.json").read_text())["figures"] == found["figures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATA: missing"),
        (["--calibrate"], "--calibrate needs DATA"),
        (["data.csv", "--quick"], "--quick goes with --behaviours or --calibrate"),
        (["data.csv", "--behaviours", "b.yaml"], "--behaviours takes the place of DATA"),
        (["--behaviours", "none.yaml"], "none.yaml: No such file"),
        (["--behaviours", "b.yaml", "--method", "caa"], "--method does not go with --behaviours"),
        (["--behaviours", "b.yaml", "--rank", "3"], "--rank does not go with --behaviours"),
        (["--behaviours", "b.yaml", "--held-out", "5"], "--held-out: expected a whole number at least 20"),
        (["--behaviours", "b.yaml", "--strengths", "-1"], "strengths"),
        (
            ["--behaviours", "b.yaml", "--raw", "--chat-template-kwargs", "{}"],
            "raw: leaves the chat template",
        ),
        (["--behaviours", "b.yaml", "--chat-template-kwargs", "[]"], "expected a JSON object, got '[]'"),
        (["--behaviours", "b.yaml", "--chat-template-kwargs", "{"], "--chat-template-kwargs: not valid JSON"),
        (["--behaviours", "b.yaml", "--chat-template", "none.jinja"], "--chat-template: none.jinja"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text("behaviours: {loud: Shout!}", encoding="utf-8")
    found = runner.invoke(app, ["fit", "model", *arguments, "--out", "out"])
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.output.split())
