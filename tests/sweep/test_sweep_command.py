"""`ksteer sweep` from the command line: what it refuses, and that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ksteer_vllm.artifact import Artifact
from ksteer_vllm.cli import app
from ksteer_vllm.sweep.calibration import CALIBRATION, Calibration
from tests.study.small_suite import write_suite

OPTIONS = ["--variants", "CAA", "--variants", "K-Steering, 8 steps", "--sizes", "1", "--prompts", "4"]
OPTIONS += ["--strengths", "4", "--rounds", "1", "--max-tokens", "40"]


def refusal(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return result.output


def test_refusals_name_the_field_and_the_remedy(tmp_path: Path) -> None:
    assert "neither a suite" in refusal(tmp_path)
    suite = write_suite(tmp_path / "suite").folder
    assert "variants: unknown 'nobody'; there are: K-Steering, 1 step" in refusal(
        suite, "--variants", "nobody"
    )
    assert "sizes: 4 of 3 labels" in refusal(suite, "--sizes", "4", "--variants", "CAA")
    assert "sizes: expected numbers" in refusal(suite, "--sizes", "one")
    assert "metric:" in refusal(suite, "--metric", "beauty")
    assert "rule:" in refusal(suite, "--rule", "worst")
    assert "'caa' was fitted at 2, not at 3" in refusal(suite, "--layers", "2,3", "--variants", "caa")
    assert "--data" in refusal(suite / "caa")
    assert "--judge-url" in refusal(suite, "--judge", "openai")
    assert "suite has its own prompts" in refusal(suite, "--data", "demo")


def test_a_probe_cannot_judge_itself(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite").folder
    assert "cannot be the judge of itself" in refusal(suite / "mlp", "--data", "demo", "--judge", "probe")


def start(suite: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from ksteer_vllm.cli import app; app()", "sweep", str(suite), *OPTIONS],
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output
    return output


def results(suite: Path) -> dict[str, Any]:
    return Calibration.load(suite).as_json()


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_ends_alike(tmp_path: Path) -> None:
    whole = write_suite(tmp_path / "whole").folder
    finish(start(whole))
    killed = write_suite(tmp_path / "killed").folder
    journal = killed / CALIBRATION / "journal.jsonl"
    process = start(killed)
    deadline = time.monotonic() + 200
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 150):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert not (killed / CALIBRATION / "results.json").exists()
    kept = journal.read_bytes().rpartition(b"\n")[0].splitlines()

    output = finish(start(killed))
    assert "strengths written into: mlp, caa" in output.replace("\n", " ")
    after = journal.read_bytes().splitlines()
    assert after[: len(kept)] == kept
    keys = [json.loads(line)["key"] for line in after[1:]]
    assert len(keys) == len(set(keys)), "nothing was run twice"
    assert results(killed) == results(whole)
    alpha = Calibration.load(killed).alpha("CAA", 1)
    assert alpha is not None
    assert Artifact.load_metadata(killed / "caa").default_alpha == {"add": alpha}
