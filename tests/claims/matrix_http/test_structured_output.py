"""Structured output of steered requests: it keeps to the grammar, and equals the offline engine's."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from testbed.compare import assert_differ, assert_same
from testbed.replies import CHAT, COMPLETIONS, MODEL_NAME, Reply, from_plain_json, reply_of
from tests.claims.matrix_http.feature_requests import (
    BOTH,
    CHOICES,
    OBJECT,
    PROMPT,
    REGEX,
    SPEC,
    STRUCTURED,
    STRUCTURED_LIMIT,
    STRUCTURED_TOP,
    TERSE,
    THINKING,
    chat_body,
)

pytestmark = pytest.mark.slow

SPECS: dict[str, Any] = {"plain": None, "generation": SPEC, "both": BOTH}
WORDS = re.compile("(sun|rain|fog)( (sun|rain|fog)){2}")


def is_valid(kind: str, text: str) -> bool:
    if kind == "json":
        value = json.loads(text)
        return sorted(value) == OBJECT["required"] and 1 <= value["days"] <= 9
    if kind == "choice":
        return text in CHOICES
    return re.fullmatch(REGEX if kind == "regex" else WORDS.pattern, text) is not None


def structured(web: httpx.Client, kind: str, spec: Any, **changes: Any) -> tuple[str, Reply]:
    body = {
        "model": MODEL_NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": STRUCTURED_LIMIT,
        "structured_outputs": STRUCTURED[kind], "logit_bias": TERSE, "logprobs": STRUCTURED_TOP,
        "return_tokens_as_token_ids": True, "ksteer": spec,
    }  # fmt: skip
    response = web.post(COMPLETIONS, json={**body, **changes})
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    return choices[0]["text"], reply_of(COMPLETIONS, choices)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", STRUCTURED)
def test_it_is_valid_and_equals_the_offline_engine(
    web: httpx.Client, offline_answers: dict[str, Any], kind: str, name: str
) -> None:
    text, reply = structured(web, kind, SPECS[name])
    assert is_valid(kind, text), text
    expected = from_plain_json(offline_answers[f"{kind} {name}"])
    assert_same(reply, expected, f"{kind} {name}")
    if name != "plain":
        assert_differ(expected, from_plain_json(offline_answers[f"{kind} plain"]), f"{kind} {name}")


@pytest.mark.parametrize("stream", [False, True])
def test_the_grammar_binds_after_the_reasoning_of_a_steered_chat(web: httpx.Client, stream: bool) -> None:
    """`response_format`, reasoning and steering in one request: the reasoning is free text, steered too."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}}
    texts = {}
    for name, spec in SPECS.items():
        body = chat_body(response_format=schema, logit_bias=TERSE, max_tokens=90, ksteer=spec, stream=stream)
        reasoning, content = reasoning_and_content(web.post(CHAT, json=body), stream)
        assert is_valid("json", content), content
        assert 0 < len(reasoning) <= THINKING  # a token is a byte: the budget held beside the grammar
        texts[name] = reasoning
    assert len(set(texts.values())) == len(SPECS)


def reasoning_and_content(response: httpx.Response, stream: bool) -> tuple[str, str]:
    """Of a chat answer, streamed or not."""
    assert response.status_code == 200, response.text
    if not stream:
        parts = [response.json()["choices"][0]["message"]]
    else:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        parts = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    reasoning, content = (
        "".join(part.get(name) or "" for part in parts) for name in ("reasoning", "content")
    )
    return reasoning, content


@pytest.mark.parametrize("kind", STRUCTURED)
def test_a_bad_spec_beside_a_grammar_is_refused(web: httpx.Client, kind: str) -> None:
    body = {"model": MODEL_NAME, "prompt": PROMPT, "structured_outputs": STRUCTURED[kind], "stream": True}
    response = web.post(COMPLETIONS, json={**body, "ksteer": {**SPEC, "target": ["hot"]}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "ksteer.target.hot"
