"""The servers: one with steering and one without, shared by nearly every test, started side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from testbed.models import make_model
from testbed.probes import random_probe
from testbed.replies import COMPLETIONS, Reply, from_plain_json, reply_of, request_body
from testbed.serving import START_LIMIT, Server, child_environment, serve
from tests.server.http.other_plugin import install_other_plugin
from tests.server.http.parsing import serve_flags
from tests.server.http.specs import MAX_STEPS, MOOD_ALPHA, MOOD_LABELS, MOODS, OPEN_LAYERS, TONES


@dataclass(frozen=True)
class Folders:
    """A tiny model and two probes fitted on it."""

    model: Path
    tones: Path
    moods: Path
    work: Path

    @property
    def probe_flags(self) -> tuple[str, ...]:
        return ("--ksteer-probe", f"{TONES}={self.tones}", "--ksteer-probe", f"{MOODS}={self.moods}")


@dataclass(frozen=True)
class Running:
    """What runs side by side: the server with steering, the one without, and the offline engine's answers."""

    steering: Server
    plain: Server
    offline: dict[str, dict[str, Reply]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    work = tmp_path_factory.mktemp("server")
    tones = random_probe()
    moods = random_probe(layer=2, labels=MOOD_LABELS, seed=1, width=32, default_alpha=MOOD_ALPHA)
    for name, probe in ((TONES, tones), (MOODS, moods)):
        probe.save(work / name)
    return Folders(make_model("llama", work / "model"), work / TONES, work / MOODS, work)


@pytest.fixture(scope="session")
def running(folders: Folders, serving: None) -> Iterator[Running]:
    answers = folders.work / "offline.json"
    arguments = map(str, (folders.model, folders.tones, folders.moods, answers))
    steering_flags = (
        "--plugin", "ksteer", *folders.probe_flags, "--ksteer-layers", ",".join(map(str, OPEN_LAYERS)),
        "--ksteer-max-steps", str(MAX_STEPS), "--additional-config", '{"other": 1}', "--enable-prompt-embeds",
    )  # fmt: skip
    scale_out = ("--enable-scale-out",) if "--enable-scale-out" in serve_flags() else ()
    other = install_other_plugin(folders.work)
    flags = (*steering_flags, *scale_out)
    with ExitStack() as stack:
        steering = stack.enter_context(
            serve(folders.model, folders.work / "steering.log", *flags, environment=other)
        )
        plain = stack.enter_context(
            serve(folders.model, folders.work / "plain.log", environment={"VLLM_SERVER_DEV_MODE": "1"})
        )
        offline = subprocess.run(
            [sys.executable, "-m", "tests.server.http.offline_reference", *arguments],
            env=child_environment(),
            timeout=START_LIMIT,
            capture_output=True,
            check=False,
            text=True,
        )
        assert offline.returncode == 0, offline.stdout[-3000:] + offline.stderr[-3000:]
        replies = {
            route: {name: from_plain_json(choices) for name, choices in named.items()}
            for route, named in json.loads(answers.read_text()).items()
        }
        steering.wait_until_healthy()
        plain.wait_until_healthy()
        yield Running(steering, plain, replies)


@pytest.fixture(scope="session")
def server(running: Running) -> Server:
    """`vllm serve MODEL --plugin ksteer --ksteer-probe … --ksteer-probe …`."""
    return running.steering


@pytest.fixture(scope="session")
def plain_server(running: Running) -> Server:
    """`vllm serve MODEL`: the plugin is installed but not enabled. With vLLM's development routes."""
    return running.plain


@pytest.fixture(scope="session")
def offline(running: Running) -> dict[str, dict[str, Reply]]:
    """route -> name of a spec (or `plain`) -> what `LLM.generate` or `LLM.chat` answers."""
    return running.offline


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def plain_http(plain_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plain_server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def openai(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def unharmed(server: Server, http: httpx.Client) -> Iterator[None]:
    """Whatever the test sends: a plain request gives the same output before and after; no error is logged."""

    def plain_reply() -> Any:
        response = http.post(COMPLETIONS, json=request_body(COMPLETIONS))
        assert response.status_code == 200, response.text
        return reply_of(COMPLETIONS, response.json()["choices"])

    before, logged = plain_reply(), len(server.log)
    yield
    assert plain_reply() == before
    new = server.log[logged:]
    assert "Traceback" not in new, new
    assert " ERROR " not in new, new
