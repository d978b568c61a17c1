"""`vllm run-batch`: chat lines are steered; a spec on a line of any other route is refused, by itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from testbed.replies import CHAT, MODEL_NAME, spellings
from testbed.serving import SMALL, START_LIMIT, child_environment, vllm_command
from tests.claims.matrix_http.conftest import ChatFolders
from tests.claims.matrix_http.feature_requests import BOTH, REPORTING, SPEC, chat_body

pytestmark = pytest.mark.slow

LENGTH = 12
AUDIO = "data:audio/wav;base64,UklGRg=="
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "body": spellings(SPEC)["body"],
    "xargs": spellings(SPEC)["xargs"],
    "both": {"ksteer": BOTH},
    "report": {"ksteer": REPORTING},
    "bad": {"ksteer": {**SPEC, "target": ["hot"]}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "hi"},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/audio/transcriptions": {"file_url": AUDIO},
    "/v1/audio/translations": {"file_url": AUDIO},
}


def chat_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return chat_body(max_tokens=LENGTH, ignore_eos=True, thinking_token_budget=None, **fields)


def lines() -> dict[str, tuple[str, dict[str, Any]]]:
    """Custom id -> (url, body)."""
    return {
        **{name: (CHAT, chat_fields(fields)) for name, fields in CHATS.items()},
        **{
            f"{url} {spelling}": (url, {"model": MODEL_NAME, **body, **fields})
            for url, body in OTHERS.items()
            for spelling, fields in spellings(SPEC).items()
        },
        "no such url": ("/v1/responses", chat_fields({"ksteer": SPEC})),
    }


@pytest.fixture(scope="module")
def batch(chat_folders: ChatFolders) -> dict[str, dict[str, Any]]:
    """Custom id -> line of the output file."""
    given, answered = (chat_folders.work / name for name in ("batch.jsonl", "answers.jsonl"))
    given.write_text(
        "\n".join(
            json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body})
            for name, (url, body) in lines().items()
        )
    )
    flags = (
        "--model", str(chat_folders.model), "--served-model-name", MODEL_NAME, *SMALL,
        "--ksteer-probe", f"tones={chat_folders.tones}", "--reasoning-parser", "deepseek_r1",
    )  # fmt: skip
    ended = subprocess.run(
        vllm_command("run-batch", "-i", str(given), "-o", str(answered), *flags),
        env=child_environment(),
        timeout=START_LIMIT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return read(answered)


def read(file: Path) -> dict[str, dict[str, Any]]:
    return {line["custom_id"]: line for line in map(json.loads, file.read_text().splitlines())}


def test_every_line_is_answered(batch: dict[str, dict[str, Any]]) -> None:
    assert set(batch) == set(lines())


def test_chat_lines_are_steered_as_the_server_steers(
    batch: dict[str, dict[str, Any]], web: httpx.Client
) -> None:
    texts = {}
    for name in ("plain", "body", "xargs", "both", "report"):
        response = batch[name]["response"]
        assert response["status_code"] == 200, batch[name]
        texts[name] = response["body"]["choices"][0]["message"]["reasoning"]
        served = web.post(CHAT, json=chat_fields(CHATS[name])).json()
        assert texts[name] == served["choices"][0]["message"]["reasoning"]
        assert ("ksteer" in response["body"]) == (name == "report")
    assert texts["body"] == texts["xargs"] == texts["report"] != texts["plain"]
    assert batch["report"]["response"]["body"]["ksteer"]["choices"][0]["tokens_steered"] == LENGTH


def test_a_bad_spec_is_refused_and_the_others_run(batch: dict[str, dict[str, Any]]) -> None:
    assert batch["bad"]["response"]["status_code"] == 400
    assert "ksteer.target.hot" in batch["bad"]["error"]["error"]["message"]


@pytest.mark.parametrize("spelling", spellings(SPEC))
@pytest.mark.parametrize("url", OTHERS)
def test_a_spec_on_another_route_is_refused_by_name(
    batch: dict[str, dict[str, Any]], url: str, spelling: str
) -> None:
    line = batch[f"{url} {spelling}"]
    assert line["response"]["status_code"] == 400
    message = line["error"]["error"]["message"]
    assert message.startswith(f"ksteer: {url} does not support steering and would lose the spec")


def test_routes_a_batch_does_not_know_are_vllms_refusal(batch: dict[str, dict[str, Any]]) -> None:
    assert batch["no such url"]["response"]["status_code"] == 400
    assert "URL /v1/responses was used" in batch["no such url"]["error"]
