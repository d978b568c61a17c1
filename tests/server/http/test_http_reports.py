"""Steering reports over HTTP: beside the choices, streamed or not, and only for who asks.

Reports of equal requests are compared within 1e-3: the two ran in batches of their own (see
`testbed.compare`).
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI

from testbed.compare import TOLERANCE, VISIBLE
from testbed.replies import (
    COMPLETIONS,
    MAX_TOKENS,
    MESSAGES,
    PROMPT,
    ROUTES,
    request_body,
    spellings,
)
from testbed.serving import MODEL_NAME
from tests.server.http.specs import MOOD_LABELS, MOODS, spec

pytestmark = pytest.mark.slow

REPORTING = spec(where="both", num_steps=2, report=True)


def strict(text: str) -> dict[str, Any]:
    """JSON without Python's NaN and Infinity, which other readers refuse."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {text}")

    value: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return value


def post(http: httpx.Client, route: str, **changes: Any) -> dict[str, Any]:
    response = http.post(route, json=request_body(route, **changes))
    assert response.status_code == 200, response.text
    return strict(response.text)


def stream(http: httpx.Client, route: str, **changes: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, which ends with `[DONE]`."""
    body = request_body(route, stream=True, **changes)
    with http.stream("POST", route, json=body) as response:
        assert response.status_code == 200
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [strict(event) for event in events]


def tokens_of(report: dict[str, Any], layer: int = 0) -> list[dict[str, Any]]:
    (edit,) = report["edits"]
    tokens: list[dict[str, Any]] = edit["layers"][layer]["tokens"]
    return tokens


def check(report: dict[str, Any], num_prompt: int = len(PROMPT), num_generated: int = MAX_TOKENS) -> None:
    """A report of REPORTING: every prompt and generated token but the last, which no pass computes."""
    (edit,) = report["edits"]
    assert (edit["probe"], edit["method"]) == ("tones", "gradient")
    (layer,) = edit["layers"]
    assert (layer["layer"], layer["labels"]) == (1, ["warm", "cold", "dry"])
    assert [token["position"] for token in layer["tokens"]] == list(range(num_prompt + num_generated - 1))
    assert all(token["after"]["warm"] > token["before"]["warm"] for token in layer["tokens"])
    assert report["tokens_steered"] == num_prompt + num_generated - 1
    assert report["mean_shift"] > VISIBLE


def distance(left: dict[str, Any], right: dict[str, Any]) -> float:
    """The largest difference of the records two reports have in common."""
    pairs = zip(tokens_of(left), tokens_of(right), strict=True)
    return max(
        abs(a[side][label] - b[side][label])
        for a, b in pairs
        for side in ("before", "after")
        for label in a[side]
    )


@pytest.mark.parametrize("route", ROUTES)
def test_the_report_is_beside_the_choices(http: httpx.Client, route: str) -> None:
    for fields in spellings(REPORTING).values():
        (choice,) = post(http, route, **fields)["ksteer"]["choices"]
        assert choice.pop("index") == 0
        check(choice)


@pytest.mark.parametrize("route", ROUTES)
def test_streamed_the_report_is_the_last_chunk(http: httpx.Client, route: str) -> None:
    whole = post(http, route, ksteer=REPORTING)["ksteer"]["choices"][0]
    for options in (None, {"include_usage": True}):
        *others, last = stream(http, route, ksteer=REPORTING, stream_options=options)
        assert all("ksteer" not in chunk for chunk in others)
        assert last["choices"] == []
        for name in ("id", "object", "created", "model"):
            assert last[name] == others[0][name]
        (choice,) = last["ksteer"]["choices"]
        assert choice.pop("index") == 0
        check(choice)
        assert distance(choice, whole) < TOLERANCE
        assert any("usage" in chunk for chunk in others) is (options is not None)


@pytest.mark.parametrize("route", ROUTES)
def test_every_choice_has_its_own(http: httpx.Client, route: str) -> None:
    sampled = {"n": 3, "temperature": 1.0, "seed": 5, "ksteer": REPORTING}
    whole = post(http, route, **sampled)["ksteer"]["choices"]
    streamed = stream(http, route, **sampled)[-1]["ksteer"]["choices"]
    for choices in (whole, streamed):
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        for choice in choices:
            check(choice)
        assert distance(choices[0], choices[1]) > VISIBLE
    for left, right in zip(whole, streamed, strict=True):
        assert distance(left, right) < TOLERANCE


def test_several_prompts_with_several_choices_each(http: httpx.Client) -> None:
    prompts = [[1, 5, 9], [1, 30, 44, 70, 7, 8, 11]]
    body = {"prompt": prompts, "n": 2, "temperature": 1.0, "seed": 5, "ksteer": REPORTING}
    for choices in (
        post(http, COMPLETIONS, **body)["ksteer"]["choices"],
        stream(http, COMPLETIONS, **body)[-1]["ksteer"]["choices"],
    ):
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        for choice in choices:
            check(choice, num_prompt=len(prompts[choice["index"] // 2]))


@pytest.mark.parametrize("route", ROUTES)
def test_nobody_else_gets_one(http: httpx.Client, route: str) -> None:
    for fields in ({}, {"ksteer": spec()}, {"ksteer": spec(report=False)}):
        assert "ksteer" not in post(http, route, **fields)
        assert all("ksteer" not in chunk for chunk in stream(http, route, **fields))


def test_a_report_that_is_no_boolean_is_refused(http: httpx.Client) -> None:
    response = http.post(COMPLETIONS, json=request_body(COMPLETIONS, ksteer=spec(report="yes")))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "ksteer.report"


def test_labels_that_are_not_ascii(http: httpx.Client) -> None:
    wanted = {"probe": MOODS, "target": [MOOD_LABELS[1]], "report": True}
    whole = post(http, COMPLETIONS, ksteer=wanted)["ksteer"]["choices"]
    streamed = stream(http, COMPLETIONS, ksteer=wanted)[-1]["ksteer"]["choices"]
    for choices in (whole, streamed):
        assert set(tokens_of(choices[0])[0]["after"]) == set(MOOD_LABELS)


def test_the_report_of_a_request_steered_off_the_scale_is_valid_json(http: httpx.Client) -> None:
    wild = spec(alpha=1e12, num_steps=64, where="both", report=True)
    for choice in (
        post(http, COMPLETIONS, ksteer=wild)["ksteer"]["choices"][0],
        stream(http, COMPLETIONS, ksteer=wild)[-1]["ksteer"]["choices"][0],
    ):
        assert len(tokens_of(choice)) == len(PROMPT) + MAX_TOKENS - 1


@pytest.mark.parametrize("streaming", [False, True])
def test_the_openai_client_reads_it(openai: OpenAI, streaming: bool) -> None:
    answer = openai.chat.completions.create(
        model=MODEL_NAME,
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=streaming,
        extra_body={"ksteer": REPORTING, "ignore_eos": True},
    )
    last = list(answer)[-1] if streaming else answer
    (choice,) = last.model_extra["ksteer"]["choices"]  # type: ignore[union-attr, index]
    check(choice)


@pytest.mark.usefixtures("unharmed")
def test_a_client_that_leaves_early_harms_nobody(http: httpx.Client) -> None:
    for route in ROUTES:
        body = request_body(route, stream=True, max_tokens=200, ksteer=REPORTING)
        with http.stream("POST", route, json=body) as response:
            next(response.iter_lines())
        check(post(http, route, ksteer=REPORTING)["ksteer"]["choices"][0])
