"""`ksteer calibrate` from the command line: what it refuses, and that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from ksteer_vllm.experiments.calibration.record import CALIBRATION, Calibration
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from tests.support.demo_probe import demo_probe
from tests.workbench.bench.small_suite import write_suite

OPTIONS = ["--variants", "CAA", "--variants", "K-Steering, 8 steps", "--sizes", "1", "--prompts", "4"]
OPTIONS += ["--strengths", "4", "--rounds", "1", "--max-tokens", "40"]
KEPT = 150
"""Values in the journal of the run that is killed; the whole has more."""


def refusal(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
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


def test_its_earlier_name_still_works(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["sweep", str(tmp_path)])
    assert result.exit_code == 2
    assert "neither a suite" in result.output
    assert "sweep" not in CliRunner().invoke(app, ["--help"]).output


COMMAND = "from ksteer_vllm.cli import app; app()"
KILLED = f"""
import os, signal
from ksteer_vllm.bench.journal import Journal
add = Journal.add
def add_and_die(self, key, value):
    add(self, key, value)
    if len(self) == {KEPT}:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_and_die
{COMMAND}
"""
"""The command, killed by itself once so many values are kept: from outside it might have ended by then."""


def steerable_suite(folder: Path, fitted: Path) -> Path:
    """A suite whose probes steer the shipped model, by its exact reader: their strengths are written."""
    suite, probe = write_suite(folder, judge="reader").folder, Probe.load(fitted)
    probe.with_metadata(default_alpha={}).save(suite / "mlp")
    vectors = {"vectors": probe.tensors["label_vectors"]}
    metadata = ProbeMetadata(family="vectors", labels=probe.labels, layer=2, model=probe.metadata.model)
    Probe(metadata, vectors).save(suite / "caa")
    return suite


def run(suite: Path, program: str = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, "calibrate", str(suite), *OPTIONS],
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def finished(suite: Path) -> str:
    done = run(suite)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(suite: Path) -> dict[str, Any]:
    return Calibration.load(suite).as_json()


@pytest.mark.slow
def test_a_calibration_that_was_killed_goes_on_and_ends_alike(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fitted = demo_probe(tmp_path_factory)
    whole = steerable_suite(tmp_path / "whole", fitted)
    finished(whole)
    killed = steerable_suite(tmp_path / "killed", fitted)
    journal = killed / CALIBRATION / "journal.jsonl"
    first = run(killed, KILLED)
    assert first.returncode == -signal.SIGKILL, first.stdout + first.stderr
    assert not (killed / CALIBRATION / "results.json").exists()
    kept = journal.read_bytes().splitlines()
    assert len(kept) == 1 + KEPT

    output = finished(killed)
    assert "strengths written into: mlp, caa" in output.replace("\n", " ")
    after = journal.read_bytes().splitlines()
    assert after[: len(kept)] == kept
    keys = [json.loads(line)["key"] for line in after[1:]]
    assert len(keys) == len(set(keys)), "nothing was run twice"
    assert results(killed) == results(whole)
    alpha = Calibration.load(killed).alpha("CAA", 1)
    assert alpha is not None
    assert Probe.load_metadata(killed / "caa").default_alpha == {"add": alpha}
