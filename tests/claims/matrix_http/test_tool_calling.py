"""Tool calls of steered requests: required, named, and found by the tool parser in a free answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from openai import OpenAI

from testbed.replies import CHAT, MODEL_NAME
from tests.claims.matrix_http.feature_requests import (
    BOTH,
    CITY,
    FUNCTION,
    MESSAGES,
    REPORTING,
    SPEC,
    TERSE,
    THINKING,
    TOOL,
    chat_body,
)

pytestmark = pytest.mark.slow

LOOSE_TOOL = {"type": "function", "function": {**FUNCTION, "strict": False}}
"""Not strict: vLLM leaves the answer free, and the parser looks for a call in it."""
WRITTEN_CALL = (
    r'<tool_call>\{"name": "get_weather", "arguments": \{"city": "[a-z]{1,6}", "days": [1-9]\}\}</tool_call>'
)
"""The free answer of a model that calls tools, as a regex: the tiny model would write no call by itself."""

CHOICES: dict[str, dict[str, Any]] = {
    "required": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "named": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    "auto": {"tools": [LOOSE_TOOL], "tool_choice": "auto", "structured_outputs": {"regex": WRITTEN_CALL}},
}
LIMIT = 140


def ask(web: httpx.Client, choice: str, spec: Any, *, stream: bool) -> tuple[list[dict[str, Any]], Any]:
    """(the chunks, or the response as the only one; the report)."""
    body = chat_body(max_tokens=LIMIT, logit_bias=TERSE, ksteer=spec, stream=stream, **CHOICES[choice])
    response = web.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    if not stream:
        return [response.json()], response.json().get("ksteer")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    return chunks, chunks[-1].get("ksteer")


def call_of(chunks: Iterable[dict[str, Any]]) -> tuple[str, str]:
    """(name, arguments) of the one call in an answer, whole or in deltas."""
    parts = [c["delta"] if "delta" in c else c["message"] for chunk in chunks for c in chunk["choices"]]
    calls = [call for part in parts for call in part.get("tool_calls") or []]
    assert {call.get("index", 0) for call in calls} == {0}
    functions = [call["function"] for call in calls]
    name, arguments = ("".join(f.get(part) or "" for f in functions) for part in ("name", "arguments"))
    return name, arguments


def check(arguments: str) -> dict[str, Any]:
    parsed = json.loads(arguments)
    assert set(parsed) == {"city", "days"}
    assert re.fullmatch(CITY["pattern"], parsed["city"])
    assert 1 <= parsed["days"] <= 9
    return parsed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_steered_request_calls_the_tool(web: httpx.Client, choice: str, stream: bool) -> None:
    calls = {}
    for name, spec in {"plain": None, "generation": SPEC, "both": BOTH}.items():
        chunks, report = ask(web, choice, spec, stream=stream)
        function, arguments = call_of(chunks)
        assert function == "get_weather"
        assert report is None
        calls[name] = check(arguments)
        assert calls[name] == check(call_of(ask(web, choice, spec, stream=not stream)[0])[1])
    assert calls["plain"] not in (calls["generation"], calls["both"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_its_report_covers_the_call(web: httpx.Client, choice: str, stream: bool) -> None:
    chunks, report = ask(web, choice, REPORTING, stream=stream)
    _, arguments = call_of(chunks)
    (entry,) = report["choices"]
    assert entry["tokens_steered"] > THINKING + len(arguments)
    (edit,) = entry["edits"]
    after = [token["after"]["warm"] - token["before"]["warm"] for token in edit["layers"][0]["tokens"]]
    assert min(after) > 0


@pytest.mark.parametrize("choice", CHOICES)
def test_a_bad_spec_beside_tools_is_refused(web: httpx.Client, choice: str) -> None:
    for stream in (False, True):
        body = chat_body(ksteer={**SPEC, "num_steps": 0}, stream=stream, **CHOICES[choice])
        response = web.post(CHAT, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "ksteer.num_steps"


@pytest.mark.parametrize("streaming", [False, True])
def test_the_openai_client_calls_tools(client: OpenAI, streaming: bool) -> None:
    answer: Any = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[*MESSAGES, {"role": "assistant", "tool_calls": [earlier_call()]},
                  {"role": "tool", "tool_call_id": "c1", "content": "rain"}],
        max_tokens=LIMIT,
        temperature=0,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        logit_bias=TERSE,
        stream=streaming,
        extra_body={"ksteer": {**REPORTING, "where": "both"}, "thinking_token_budget": THINKING},
    )  # fmt: skip
    chunks = [chunk.model_dump() for chunk in answer] if streaming else [answer.model_dump()]
    name, arguments = call_of(chunks)
    assert name == "get_weather"
    check(arguments)
    assert chunks[-1]["ksteer"]["choices"][0]["tokens_steered"] > 0


def earlier_call() -> dict[str, Any]:
    return {
        "id": "c1", "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "a", "days": 1}'},
    }  # fmt: skip
