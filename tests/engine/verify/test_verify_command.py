"""`ksteer verify` on the shipped model: offline, and over HTTP with and without its weights at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.verify.offline import random_probe
from testbed.serving import MODEL_NAME, Server, child_environment, serve
from tests.support.engines import GIB_OF_CACHE

KEY = "a-key"
LAYERS = 6
PRESET = "warm: {probe: tones, target: [a], alpha: 0.5}\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_probe(str(MODEL_DIR)).save(tmp_path_factory.mktemp("verify") / "probe")


@pytest.fixture(scope="module")
def server(probe: Path, serving: None) -> Iterator[Server]:
    """The shipped model with a key and a default preset, so that plain requests must say that they are."""
    presets = probe.parent / "presets.yaml"
    presets.write_text(PRESET)
    with serve(
        MODEL_DIR, probe.parent / "log",
        "--plugin", "ksteer", "--ksteer-probe", f"tones={probe}", "--ksteer-layers", "all",
        "--ksteer-presets", str(presets), "--ksteer-default", "warm",
        "--enable-prompt-tokens-details", "--api-key", KEY, "--kv-cache-memory-bytes", str(64 << 20),
    ) as running:  # fmt: skip
        running.wait_until_healthy()
        yield running


def verified(arguments: list[str], report: Path) -> dict[str, Any]:
    """What a run in this process found, whose engine is elsewhere."""
    result = CliRunner().invoke(app, ["verify", *arguments, "--json", str(report)])
    assert result.exit_code == 0, result.output
    print(result.output)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["status"] for finding in report["findings"]}


def test_the_shipped_model_offline(tmp_path: Path) -> None:
    """No probe given: one of random weights does."""
    done = subprocess.run(
        [sys.executable, "-c", "from ksteer_vllm.cli import app; app()", "verify", "--json", "r.json"],
        env=child_environment(GIB_OF_CACHE), cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "PASSED" in done.stdout
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["layers"] == list(range(LAYERS))
    assert set(statuses(found).values()) == {"passed"}
    assert "edits act at their layer" in statuses(found)


def test_a_server_with_its_weights_at_hand(server: Server, probe: Path, tmp_path: Path) -> None:
    found = verified(
        ["--url", server.url, "--api-key", KEY, "--probe", f"tones={probe}"], tmp_path / "r.json"
    )
    assert set(statuses(found).values()) == {"passed"}
    assert "edits act at their layer" in statuses(found)  # by the root the server names, which is here
    assert found["layers"] == list(range(LAYERS))
    assert found["requests"] < 80
    assert found["subject"].startswith(MODEL_NAME)


def test_a_server_without_its_weights(server: Server, tmp_path: Path) -> None:
    found = verified(
        ["--url", f"{server.url}/v1", "--api-key", KEY, "--layers", "1,2,4,5"], tmp_path / "r.json"
    )
    seen = statuses(found)
    assert seen.pop("edits act at their layer") == "skipped"
    assert set(seen.values()) == {"passed"}
    assert {"layers act in order", "the last layer is the last", "cache: plain prompts hit"} <= set(seen)
    assert [gap.partition(":")[0] for gap in found["not_checked"]] == [
        "at which block a layer's edits act",
        "which engine answered",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--api-key", "wrong"], "--api-key"),
        (["--api-key", KEY, "--probe", "moods"], "no moods; loaded: tones"),
        (["--api-key", KEY, "--layers", "9"], "9 not open for steering"),
    ],
    ids=["key", "probe", "layer"],
)
def test_what_a_server_does_not_have(server: Server, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["verify", "--url", server.url, *arguments])
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())


def test_a_copy_of_a_probe_that_is_another(server: Server, tmp_path: Path) -> None:
    probe = random_probe(str(MODEL_DIR))
    probe.tensors["b3"].add_(1.0)
    folder = probe.save(tmp_path / "other")
    result = CliRunner().invoke(
        app, ["verify", "--url", server.url, "--api-key", KEY, "--probe", f"tones={folder}"]
    )
    assert result.exit_code == 2, result.output
    assert "is not what the server has loaded" in " ".join(result.output.split())
