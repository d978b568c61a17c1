"""Fields of an OpenAI request beside a spec: several choices, stop strings, usage, best_of, penalties.

Beam search is refused by name: `tests/server/http/test_http_refusals.py::test_beam_search`.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from testbed.replies import CHAT, COMPLETIONS, MODEL_NAME
from tests.claims.matrix_http.feature_requests import PROMPT, REPORTING, SPEC, chat_body

pytestmark = pytest.mark.slow

LENGTH = 16
ROUTES = (COMPLETIONS, CHAT)


def body(route: str, **changes: Any) -> dict[str, Any]:
    fields = {"max_tokens": LENGTH, "ignore_eos": True, "return_token_ids": True, **changes}
    if route == CHAT:
        return chat_body(**fields)
    return {"model": MODEL_NAME, "prompt": PROMPT, "temperature": 0, **fields}


def post(web: httpx.Client, route: str, **changes: Any) -> dict[str, Any]:
    response = web.post(route, json=body(route, **changes))
    assert response.status_code == 200, response.text
    return dict(response.json())


def tokens(answer: dict[str, Any]) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["choices"]]


@pytest.mark.parametrize("route", ROUTES)
def test_sampled_choices_are_all_steered(web: httpx.Client, route: str) -> None:
    """Several choices with a seed: the same again, different from the plain ones, a report for each."""
    sampled = {"n": 3, "temperature": 1.0, "seed": 7}
    steered = post(web, route, **sampled, ksteer=REPORTING)
    assert tokens(steered) == tokens(post(web, route, **sampled, ksteer=SPEC))
    plain = tokens(post(web, route, **sampled))
    assert all(a != b for a, b in zip(tokens(steered), plain, strict=True))
    assert len({tuple(choice) for choice in tokens(steered)}) == 3
    reports = steered["ksteer"]["choices"]
    assert [report["index"] for report in reports] == [0, 1, 2]
    assert {report["tokens_steered"] for report in reports} == {LENGTH}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_a_stop_token_ends_a_steered_request(web: httpx.Client, route: str, stream: bool) -> None:
    """The report covers what was generated, the stop included."""
    whole = tokens(post(web, route, ksteer=SPEC))[0]
    place = next(i for i in range(8, LENGTH) if whole.index(whole[i]) == i)
    fields = {"stop_token_ids": [whole[place]], "ksteer": REPORTING, "stream": stream}
    if not stream:
        answers = [post(web, route, **fields)]
    else:
        text = web.post(route, json=body(route, **fields)).text
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
        answers = [json.loads(line) for line in lines if line != "[DONE]"]
    ended = [c for answer in answers for c in answer["choices"] if c.get("finish_reason")]
    assert [(c["finish_reason"], c["stop_reason"]) for c in ended] == [("stop", whole[place])]
    assert answers[-1]["ksteer"]["choices"][0]["tokens_steered"] == place + 1


@pytest.mark.parametrize("route", ROUTES)
def test_a_stop_string_ends_a_steered_request(web: httpx.Client, route: str) -> None:
    answer = post(web, route, ksteer=SPEC, max_tokens=60)
    choice = answer["choices"][0]
    text = choice["text"] if route == COMPLETIONS else choice["message"]["content"]
    stop = next(c for c in text[4:] if c.isascii() and c.isprintable())
    ended = post(web, route, ksteer=SPEC, max_tokens=60, stop=[stop])["choices"][0]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", stop)
    assert len(ended["token_ids"]) < len(choice["token_ids"])
    assert ended["token_ids"] == choice["token_ids"][: len(ended["token_ids"])]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_stream_usage_and_report(web: httpx.Client, route: str, continuous: bool) -> None:
    """`stream_options`: the usage chunk is as for a plain request, and the report comes after it."""
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    chunks = {}
    for name, spec in {"plain": None, "steered": REPORTING}.items():
        fields = body(route, stream=True, stream_options=options, ksteer=spec)
        lines = [
            line.removeprefix("data: ") for line in web.post(route, json=fields).text.splitlines() if line
        ]
        assert lines.pop() == "[DONE]"
        chunks[name] = [json.loads(line) for line in lines]
    *steered, report = chunks["steered"]
    assert report["choices"] == []
    assert report["ksteer"]["choices"][0]["tokens_steered"] == LENGTH
    usages = [found[-1]["usage"] for found in (steered, chunks["plain"])]
    assert usages[0]["completion_tokens"] == usages[1]["completion_tokens"] == LENGTH
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]


def test_best_of_is_not_vllms_any_more(web: httpx.Client) -> None:
    """vLLM dropped it: the field is ignored, and the one choice is steered."""
    assert tokens(post(web, COMPLETIONS, best_of=2, ksteer=SPEC)) == tokens(
        post(web, COMPLETIONS, ksteer=SPEC)
    )


@pytest.mark.parametrize("route", ROUTES)
def test_penalties_and_biases_go_with_steering(web: httpx.Client, route: str) -> None:
    plain = tokens(post(web, route, ksteer=SPEC))[0]
    banned = {str(token): -100 for token in set(plain)}
    other = tokens(post(web, route, ksteer=SPEC, logit_bias=banned))[0]
    fields = {"frequency_penalty": 2.0, "repetition_penalty": 1.3, "min_tokens": LENGTH}
    free = other[8:] if route == CHAT else other  # the budget closes the reasoning, whatever the bias
    assert not set(free) & set(plain)
    assert tokens(post(web, route, ksteer=SPEC, **fields))[0] != tokens(post(web, route, **fields))[0]
