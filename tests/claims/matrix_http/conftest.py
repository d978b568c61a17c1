"""One server with every request feature turned on, and an offline engine's answers; started side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from testbed.probes import random_probe
from testbed.serving import START_LIMIT, Server, child_environment, serve
from tests.claims.matrix_http.chat_model import make_chat_model
from tests.claims.matrix_http.feature_requests import PRESET, SPEC
from tests.server.http.parsing import serve_flags


@dataclass(frozen=True)
class ChatFolders:
    """The tiny chat model, a probe fitted on it, and where to write."""

    model: Path
    tones: Path
    work: Path


@pytest.fixture(scope="session")
def chat_folders(tmp_path_factory: pytest.TempPathFactory) -> ChatFolders:
    work = tmp_path_factory.mktemp("features")
    random_probe().save(work / "tones")
    return ChatFolders(make_chat_model(work / "model"), work / "tones", work)


@dataclass(frozen=True)
class Features:
    server: Server
    offline: dict[str, Any]


@pytest.fixture(scope="session")
def features(chat_folders: ChatFolders, serving: None) -> Iterator[Features]:
    answers = chat_folders.work / "offline.json"
    presets = chat_folders.work / "presets.yaml"
    presets.write_text(json.dumps({PRESET: SPEC}))  # JSON is YAML
    flags = (
        "--ksteer-presets", str(presets), "--ksteer-probe", f"tones={chat_folders.tones}",
        "--max-model-len", "512", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--reasoning-parser", "deepseek_r1",
    )  # fmt: skip
    scale_out = ("--enable-scale-out",) if "--enable-scale-out" in serve_flags() else ()
    stored = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
    with serve(
        chat_folders.model, chat_folders.work / "log", *flags, *scale_out, environment=stored
    ) as server:
        offline = subprocess.run(
            [sys.executable, "-m", "tests.claims.matrix_http.offline_features",
             str(chat_folders.model), str(chat_folders.tones), str(answers)],
            env=child_environment(),
            timeout=START_LIMIT,
            capture_output=True,
            check=False,
            text=True,
        )  # fmt: skip
        assert offline.returncode == 0, offline.stdout[-3000:] + offline.stderr[-3000:]
        server.wait_until_healthy()
        yield Features(server, json.loads(answers.read_text()))


@pytest.fixture(scope="session")
def web(features: Features) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=features.server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def offline_answers(features: Features) -> dict[str, Any]:
    """See `offline_features`: "KIND SPEC" -> choices, "prompt SPEC" -> log-probabilities of the prompt."""
    return features.offline


@pytest.fixture(scope="session")
def client(features: Features) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{features.server.url}/v1", api_key="none", max_retries=0) as openai:
        yield openai
