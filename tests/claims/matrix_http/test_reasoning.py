"""Reasoning parsers: reasoning and answer of a steered request come apart as they do for a plain one.

Reasoning is generated like the answer: index 0 of `where.generation` is the first reasoning token, and the
token that closes the reasoning has an index too.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from testbed.replies import CHAT, MODEL_NAME
from tests.claims.matrix_http.feature_requests import MESSAGES, REPORTING, SPEC, THINKING, chat_body
from tests.claims.matrix_http.test_structured_output import reasoning_and_content

pytestmark = pytest.mark.slow

LENGTH = 24


def ask(web: httpx.Client, spec: Any, *, stream: bool = False) -> tuple[str, str]:
    body = chat_body(ignore_eos=True, max_tokens=LENGTH, ksteer=spec, stream=stream)
    return reasoning_and_content(web.post(CHAT, json=body), stream)


@pytest.mark.parametrize("stream", [False, True])
def test_both_parts_are_there_and_steered(web: httpx.Client, stream: bool) -> None:
    plain, steered = ask(web, None, stream=stream), ask(web, SPEC, stream=stream)
    assert all(plain)
    assert all(steered)
    assert plain[0] != steered[0]
    assert plain[1] != steered[1]
    assert steered == ask(web, SPEC)
    assert "</think>" not in "".join(steered)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_tokens_count_as_generation_indices(web: httpx.Client, stream: bool) -> None:
    """Windows may take the reasoning alone or leave it out: it is THINKING tokens and the closing one.

    Index 0 is the position that the first reasoning token is sampled from; the closing token is chosen by
    vLLM's budget, whatever was steered, and the first of the answer is sampled from its position.
    """
    plain = ask(web, None, stream=stream)
    answer_only = ask(web, {**SPEC, "where": {"generation": [THINKING + 1, None]}}, stream=stream)
    assert answer_only[0] == plain[0]
    assert answer_only[1] != plain[1]
    reasoning_only = ask(web, {**SPEC, "where": {"generation": [0, THINKING]}}, stream=stream)
    assert reasoning_only[0] == ask(web, SPEC)[0] != plain[0]


def test_the_report_counts_reasoning_and_answer(web: httpx.Client) -> None:
    body = chat_body(ignore_eos=True, max_tokens=LENGTH, ksteer=REPORTING)
    (choice,) = web.post(CHAT, json=body).json()["ksteer"]["choices"]
    tokens = choice["edits"][0]["layers"][0]["tokens"]
    assert [token["index"] for token in tokens] == list(range(LENGTH))
    assert {token["part"] for token in tokens} == {"generation"}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_openai_client_reads_reasoning_and_report(client: OpenAI, streaming: bool) -> None:
    answer = client.chat.completions.create(
        model=MODEL_NAME,
        messages=MESSAGES,
        max_tokens=LENGTH,
        temperature=0,
        stream=streaming,
        extra_body={"ksteer": REPORTING, "thinking_token_budget": THINKING, "ignore_eos": True},
    )
    chunks = list(answer) if streaming else [answer]
    parts = [choice.delta if streaming else choice.message for chunk in chunks for choice in chunk.choices]
    assert "".join(part.model_extra.get("reasoning") or "" for part in parts)
    assert chunks[-1].model_extra["ksteer"]["choices"][0]["tokens_steered"] == LENGTH
