"""`ksteer fit` and `ksteer inspect` from end to end, and how they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ksteer_vllm
from ksteer_vllm import Probe
from ksteer_vllm.cli import app
from ksteer_vllm.data.rows import LabelledRow, write_rows
from tests.support.engines import GIB_OF_CACHE

runner = CliRunner()


@pytest.fixture(scope="module")
def probe_folder(llama: Path, rows: list[LabelledRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    data = write_rows(folder / "data.jsonl", rows)
    command = [
        "fit",
        str(llama),
        str(data),
        "--out",
        str(folder / "probe"),
        "--width",
        "24",
        "--epochs",
        "40",
    ]
    command += ["--labels", "warm,dry", "--max-model-len", "256", "--gpu-memory-utilization", "0.3"]
    ksteer = Path(sys.executable).with_name("ksteer")  # vLLM 0.27 needs a standard output with a file number
    run = subprocess.run(
        [ksteer, *command, "--dtype", "float32"],
        env={**os.environ, **GIB_OF_CACHE},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "held-out tokens" in run.stdout
    return folder / "probe"


def test_fit_writes_a_probe_with_its_provenance(probe_folder: Path, rows: list[LabelledRow]) -> None:
    probe = Probe.load(probe_folder)
    assert probe.labels == ("warm", "dry")
    assert probe.metadata.layer == 2  # 60 % of 4
    assert probe.tensors["w1"].shape[0] == 24
    assert probe.metadata.training["rows"] == len(rows)
    assert len(probe.metadata.training["data_digest"]) == 64
    assert probe.metadata.metrics["tokens"]["mean"]["auroc"] > 0.7
    assert probe.metadata.training["linear_control"]["auroc"] > 0.7


def test_inspect_shows_it_and_checks_the_digest(probe_folder: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["inspect", str(probe_folder)])
    assert result.exit_code == 0
    assert f"{Probe.load_metadata(probe_folder).digest} (verified)" in result.output
    for text in ("warm, dry", "output of decoder block 2 of 4", "label vector warm", "data_digest"):
        assert text in result.output
    Probe.load(probe_folder).save(tmp_path)
    metadata = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps({**metadata, "layer": 1}))
    result = runner.invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 2
    assert "digest" in result.output


def test_errors_are_one_line(llama: Path, rows: list[LabelledRow], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "few.jsonl", rows[:3])
    absent = tmp_path / "absent.jsonl"
    for command, text in (
        (["inspect", str(tmp_path / "none")], "a probe folder is what `ksteer fit` writes"),
        (["fit", str(llama), str(absent), "--out", "x"], "absent.jsonl: No such file"),
        (["fit", str(llama), str(data), "--out", "x", "--labels", "hot"], "labels: hot in no row"),
    ):
        result = runner.invoke(app, command)
        assert result.exit_code == 2
        assert result.output.startswith("ksteer: ")
        assert text in result.output
        assert len(result.output.splitlines()) == 1


def test_the_version() -> None:
    assert runner.invoke(app, ["--version"]).output == f"ksteer {ksteer_vllm.__version__}\n"
