"""Clients that know nothing of steering: what they send as the model is all they say."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from testbed.serving import Server, child_environment, vllm_command
from tests.server.presets.asking import ROUTES, TEXT, text_of
from tests.server.presets.conftest import WARM, Folders

pytestmark = pytest.mark.slow

COMPLETIONS, CHAT = ROUTES[:2]
MESSAGES: Any = [{"role": "user", "content": TEXT}]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def expected(http: httpx.Client) -> dict[str, str]:
    """route -> the text of the explicit spec, which differs from the plain one."""
    texts = {route: text_of(http, route, ksteer=WARM) for route in (COMPLETIONS, CHAT)}
    assert all(text != text_of(http, route) for route, text in texts.items())
    return texts


def test_the_openai_client(preset_server: Server, expected: dict[str, str]) -> None:
    with OpenAI(base_url=f"{preset_server.url}/v1", api_key="none", max_retries=0) as client:
        assert "tiny:warm" in [model.id for model in client.models.list()]
        text = client.completions.create(model="tiny:warm", prompt=TEXT, **GREEDY).choices[0].text
        assert text == expected[COMPLETIONS]
        parts = client.completions.create(model="tiny:warm", prompt=TEXT, stream=True, **GREEDY)
        assert "".join(chunk.choices[0].text for chunk in parts if chunk.choices) == expected[COMPLETIONS]
        whole = client.chat.completions.create(model="tiny:warm", messages=MESSAGES, **GREEDY)
        assert whole.choices[0].message.content == expected[CHAT]
        chunks = client.chat.completions.create(model="tiny:warm", messages=MESSAGES, stream=True, **GREEDY)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == expected[CHAT]
        response = client.responses.create(model="tiny:warm", input=TEXT, temperature=0, max_output_tokens=12)
        assert response.output_text == expected[CHAT]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(preset_server: Server, expected: dict[str, str]) -> None:
    body = json.dumps({"model": "tiny:warm", "messages": MESSAGES, **GREEDY})
    url = f"{preset_server.url}{CHAT}"
    command = [
        "curl",
        "-sS",
        "--fail",
        "--max-time",
        "60",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    answer = subprocess.run([*command, url], capture_output=True, check=True, timeout=90)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"] == expected[CHAT]


def test_langchain(preset_server: Server, expected: dict[str, str]) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    model = langchain_openai.ChatOpenAI(
        model="tiny:warm", base_url=f"{preset_server.url}/v1", api_key="none", max_retries=0, **GREEDY
    )
    assert model.invoke(TEXT).content == expected[CHAT]
    assert "".join(chunk.content for chunk in model.stream(TEXT)) == expected[CHAT]


def bench(server: Server, folders: Folders, model: str, result: Path, *more: str) -> subprocess.Popen[bytes]:
    """`vllm bench serve`, started: four random prompts, the same for every model."""
    arguments = (
        "bench", "serve", "--backend", "openai", "--base-url", server.url, "--model", model,
        "--tokenizer", str(folders.model), "--dataset-name", "random", "--random-input-len", "8",
        "--random-output-len", "8", "--num-prompts", "4", "--seed", "5", "--temperature", "0",
        "--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", str(result.parent),
        "--result-filename", result.name,
    )  # fmt: skip
    return subprocess.Popen(
        vllm_command(*arguments, *more),
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_vllm_bench_serve(preset_server: Server, folders: Folders, tmp_path: Path) -> None:
    """The texts it saves are those of the explicit spec, and not the plain ones."""
    spec = json.dumps({"ksteer": WARM})
    calls = {
        "preset": ("tiny:warm",),
        "explicit": ("tiny", "--extra-body", spec),
        "plain": ("tiny",),
    }
    texts = {}
    for name, (model, *more) in calls.items():
        process = bench(preset_server, folders, model, tmp_path / f"{name}.json", *more)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:].decode()
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert (result["completed"], result.get("failed", 0)) == (4, 0)
        texts[name] = result["generated_texts"]
    assert texts["preset"] == texts["explicit"]
    assert all(steered != plain for steered, plain in zip(texts["preset"], texts["plain"], strict=True))
