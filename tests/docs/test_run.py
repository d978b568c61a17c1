"""The programs of the documentation run, on the shipped model with random probes like those of the demo.

The real demo's model would have to be fetched; what is shown is that the programs run as they are written.
"""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ksteer_vllm.config import EngineConfig
from ksteer_vllm.demo import MODEL_DIR
from testbed.serving import START_LIMIT, Server, child_environment, serve
from tests.docs.blocks import ROOT, Block, blocks
from tests.docs.commands import commands, option
from tests.support.engines import GIB_OF_CACHE, prepare_environment, start_engine

pytestmark = pytest.mark.slow
prepare_environment()

OFFLINE = blocks("python", containing="LLM(")
ONLINE = blocks("python", containing="OpenAI(")
ASKING = [
    (block, command)
    for block in blocks("bash", containing="/v1/chat/completions")
    for command in commands(block.text)
]
EXAMPLES = ("offline.py", "report.py")
"""Of examples/: what runs on one engine of this process. `tests/workbench/ksteering` runs what ksteering.py
shows."""
PRESETS = "tutorial-replies.md"
DOCUMENTED_URL = "http://localhost:8000"


@pytest.fixture(scope="module")
def demo_out(tmp_path_factory: pytest.TempPathFactory, voices: Path, serving: None) -> Path:
    """A folder with demo-out/model and demo-out/probe, as `make demo` leaves them."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(MODEL_DIR, folder / "demo-out" / "model")
    shutil.copytree(voices, folder / "demo-out" / "probe")
    return folder


@pytest.fixture(scope="module")
def engine(demo_out: Path) -> Any:
    return start_engine(demo_out / "demo-out" / "model", {"voices": demo_out / "demo-out" / "probe"})


@pytest.fixture
def one_engine(engine: Any, demo_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`vllm.LLM(…)` is the shared engine, if it was asked for what that is."""

    def shared(model: str, *, additional_config: dict[str, Any], **_: Any) -> Any:
        assert (demo_out / model).is_dir()
        config = EngineConfig.parse(additional_config["ksteer"])
        assert {name: source.path for name, source in config.probes.items()} == {"voices": "demo-out/probe"}
        return engine

    monkeypatch.chdir(demo_out)
    monkeypatch.setattr("vllm.LLM", shared)


def output_of(program: Path, folder: Path) -> str:
    """What a program prints, run in a process of its own; the engine it starts is another process."""
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env={**child_environment(GIB_OF_CACHE), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        timeout=START_LIMIT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_first_program_of_the_readme_runs_as_it_is_written(demo_out: Path) -> None:
    program = demo_out / "program.py"
    program.write_text(OFFLINE[0].text)
    replies = output_of(program, demo_out).strip().splitlines()[-3:]
    assert len(set(replies)) == 3, replies


def test_the_asynchronous_example_runs(demo_out: Path) -> None:
    assert "french + excited: " in output_of(ROOT / "examples" / "async_engine.py", demo_out)


@pytest.mark.parametrize("block", OFFLINE[1:], ids=str)
@pytest.mark.usefixtures("one_engine")
def test_other_offline_programs_run(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.text, block.name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("one_engine")
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / name))["main"]()
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.fixture(scope="module")
def server(demo_out: Path, tones: Path) -> Iterator[Server]:
    """A server of the quickstart's model and probe, and of those that the tutorial from replies serves."""
    (tutorial,) = (block for block in blocks("yaml") if PRESETS in block.name)
    presets = demo_out / "presets.yaml"
    presets.write_text(tutorial.text)
    flags = (
        "--ksteer-probe", f"voices={demo_out / 'demo-out' / 'probe'}", "--ksteer-probe", f"tones={tones}",
        "--ksteer-presets", str(presets), "--served-model-name", "demo-out/model", "tones-out/model",
        "--kv-cache-memory-bytes", str(32 << 20),
    )  # fmt: skip
    with serve(MODEL_DIR, demo_out / "server.log", *flags) as running:
        running.wait_until_healthy()
        yield running


@pytest.mark.parametrize("block", ONLINE, ids=str)
def test_http_programs_run(block: Block, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert DOCUMENTED_URL in block.text
    exec(compile(block.text.replace(DOCUMENTED_URL, server.url), block.name, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_client_example_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "openai_client.py"))["main"](f"{server.url}/v1")
    assert "refused: " in capsys.readouterr().out


@pytest.mark.parametrize(("block", "command"), ASKING, ids=[block.name for block, _ in ASKING])
def test_requests_are_answered(block: Block, command: list[str], server: Server) -> None:
    (url,) = (argument for argument in command if argument.startswith(DOCUMENTED_URL))
    body = json.loads(option(command, "-d") or "")
    answer = httpx.post(url.replace(DOCUMENTED_URL, server.url), json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert ("ksteer" in answer.json()) == body.get("ksteer", {}).get("report", False)
