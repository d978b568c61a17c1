"""What works where neither torch nor vLLM is installed, and what the rest says there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ksteer_vllm
from ksteer_vllm import ModelIdentity, Probe, ProbeMetadata

BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(("torch", "vllm", "transformers"), None))
from ksteer_vllm.cli import app
app()
"""


def ksteer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = ModelIdentity(name="m", model_type="llama", hidden_size=8, num_layers=4)
    metadata = ProbeMetadata(family="vectors", labels=("warm", "dry"), layer=1, model=model)
    return Probe(metadata, {"vectors": torch.arange(16.0).reshape(2, 8)}).save(tmp_path / "probe")


def test_version_and_help() -> None:
    assert ksteer("--version").stdout == f"ksteer {ksteer_vllm.__version__}\n"
    assert "calibrate" in ksteer("--help").stdout
    assert "--width" in ksteer("fit", "--help").stdout


def test_inspect(folder: Path) -> None:
    shown = ksteer("inspect", folder)
    assert shown.returncode == 0, shown.stderr
    assert f"{Probe.load_metadata(folder).digest} (verified)" in shown.stdout
    assert "vector dry" in shown.stdout
    assert f"{torch.arange(8.0, 16.0).norm():.4g}" in shown.stdout
    (folder / "probe.safetensors").write_bytes(b"else")
    refused = ksteer("inspect", folder)
    assert refused.returncode == 2
    assert "digest" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_chat_with_a_server_asks_for_the_server_alone() -> None:
    refused = ksteer("chat", "tones", "--url", "http://127.0.0.1:9")
    assert refused.returncode == 2
    assert refused.stderr.startswith("ksteer: --url: http://127.0.0.1:9: ")


def test_the_rest_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("")
    for arguments in (
        ("fit", "m", tmp_path / "d.jsonl", "--out", tmp_path / "x"),
        ("calibrate", tmp_path),
        ("demo", "--out", tmp_path / "x"),
        ("chat", tmp_path),
    ):
        refused = ksteer(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr == "ksteer: this needs torch: install vLLM or torch\n"
