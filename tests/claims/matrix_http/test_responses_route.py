"""`/v1/responses`: steered whole, streamed, in the background, after an earlier response and with tools."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from testbed.replies import CHAT, MODEL_NAME, spellings
from tests.claims.matrix_http.feature_requests import (
    BOTH,
    CITY,
    CLOSES_REASONING,
    FUNCTION,
    OBJECT,
    REPORTING,
    RESPONSES,
    SPEC,
    chat_body,
    responses_body,
)

pytestmark = pytest.mark.slow

LENGTH = 16
SPECS: dict[str, Any] = {"plain": None, "generation": SPEC, "both": BOTH}
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "streamed": {"stream": True},
    "background": {"background": True},
    "background, streamed": {"background": True, "stream": True},
}
BAD = {
    "ksteer.target.hot": {**SPEC, "target": ["hot"]},
    "ksteer.num_steps": {**SPEC, "num_steps": 0},
    "ksteer.where.prompt": {**SPEC, "where": {"prompt": [500, 501]}},
    "ksteer.where.generation": {**SPEC, "where": {"generation": [LENGTH, None]}},
}
TOOL = {"type": "function", **FUNCTION}
TOOL_CHOICES: dict[str, Any] = {"required": "required", "named": {"type": "function", "name": "get_weather"}}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


def ask(web: httpx.Client, mode: str = "whole", **changes: Any) -> dict[str, Any]:
    """The finished response object."""
    response = web.post(RESPONSES, json=responses_body(**MODES[mode], **changes))
    if "stream" in MODES[mode]:
        last = events_of(response)[-1]
        assert last["type"] == "response.completed"
        return dict(last["response"])
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    deadline = time.monotonic() + 60
    while answer["status"] in ("queued", "in_progress") and time.monotonic() < deadline:
        time.sleep(0.05)
        answer = web.get(f"{RESPONSES}/{answer['id']}").json()
    return answer


def parts_of(answer: dict[str, Any]) -> dict[str, str]:
    """Type of an output item -> its text or arguments."""
    parts: dict[str, str] = {}
    for item in answer["output"]:
        texts = [part["text"] for part in item.get("content") or []] or [item.get("arguments", "")]
        parts[item["type"]] = parts.get(item["type"], "") + "".join(texts)
    return parts


def chat_reasoning(web: httpx.Client, spec: Any) -> str:
    """What the chat route, compared with the offline engine elsewhere, answers to the same prompt."""
    body = chat_body(max_tokens=LENGTH, ignore_eos=True, thinking_token_budget=None, ksteer=spec)
    return str(web.post(CHAT, json=body).json()["choices"][0]["message"]["reasoning"])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("mode", MODES)
def test_it_answers_as_the_chat_route_does(web: httpx.Client, mode: str, name: str) -> None:
    expected = chat_reasoning(web, SPECS[name])
    fields = spellings(SPECS[name]).values() if SPECS[name] else [{}, {"ksteer": None}]
    for spelling in fields:
        answer = ask(web, mode, **spelling)
        assert parts_of(answer) == {"reasoning": expected}
        assert "ksteer" not in answer
    if name != "plain":
        assert expected != chat_reasoning(web, None)


@pytest.mark.parametrize("mode", MODES)
def test_the_report_comes_with_the_response(web: httpx.Client, mode: str) -> None:
    """Streamed, with that of the last event and no other."""
    for spec, prompt_tokens in ((REPORTING, 0), ({**BOTH, "report": True}, 21)):
        answer = ask(web, mode, ksteer=spec)
        (choice,) = answer["ksteer"]["choices"]
        assert choice["index"] == 0
        assert choice["tokens_steered"] == LENGTH + max(prompt_tokens - 1, 0)
        if "background" in mode:
            assert web.get(f"{RESPONSES}/{answer['id']}").json()["ksteer"] == answer["ksteer"]
    if "stream" in MODES[mode]:
        events = events_of(web.post(RESPONSES, json=responses_body(**MODES[mode], ksteer=REPORTING)))
        assert ["ksteer" in json.dumps(event) for event in events].count(True) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("field", BAD)
def test_a_bad_spec_is_status_400_before_any_event(web: httpx.Client, field: str, mode: str) -> None:
    for fields in spellings(BAD[field]).values():
        response = web.post(RESPONSES, json=responses_body(**MODES[mode], **fields))
        assert response.status_code == 400, response.text
        assert response.headers["content-type"] == "application/json"
        error = response.json()["error"]
        assert error["param"] == field
        assert error["message"].startswith(field)


def test_both_spellings_and_other_carriers_are_refused(web: httpx.Client) -> None:
    fields = {**spellings(SPEC)["body"], **spellings(SPEC)["xargs"]}
    assert "given twice" in web.post(RESPONSES, json=responses_body(**fields)).text
    for carrier in ("extra_body", "extra_args", "sampling_params"):
        response = web.post(RESPONSES, json=responses_body(**{carrier: {"ksteer": SPEC}}, stream=True))
        assert response.status_code == 400
        assert carrier in response.json()["error"]["message"]


@pytest.mark.parametrize("mode", ["whole", "streamed"])
def test_a_spec_is_each_responses_own(web: httpx.Client, mode: str) -> None:
    """A response after an earlier one reads what that said, steered or not, and is steered as it asks."""
    first = ask(web, ksteer=SPEC)
    said = {"previous_response_id": first["id"], "input": "again"}
    answers = {name: ask(web, mode, **said, ksteer=spec) for name, spec in SPECS.items()}
    assert len({str(parts_of(answer)) for answer in answers.values()}) == len(SPECS)
    assert parts_of(ask(web, mode, **said)) == parts_of(answers["plain"])
    report = ask(web, mode, **said, ksteer={**BOTH, "report": True})
    tokens = report["ksteer"]["choices"][0]["edits"][0]["layers"][0]["tokens"]
    in_prompt = sum(token["part"] == "prompt" for token in tokens)
    assert in_prompt == report["usage"]["input_tokens"] - 1 > first["usage"]["input_tokens"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("choice", TOOL_CHOICES)
def test_a_steered_response_calls_a_tool(web: httpx.Client, choice: str, mode: str) -> None:
    fields = {
        "tools": [TOOL], "tool_choice": TOOL_CHOICES[choice], "parallel_tool_calls": False,
        "logit_bias": CLOSES_REASONING, "max_output_tokens": 160, "ignore_eos": False,
    }  # fmt: skip
    found = {}
    for name, spec in {**SPECS, "reporting": REPORTING}.items():
        answer = ask(web, mode, **fields, ksteer=spec)
        call = next(item for item in answer["output"] if item["type"] == "function_call")
        assert call["name"] == "get_weather"
        arguments = json.loads(call["arguments"])
        assert re.fullmatch(CITY["pattern"], arguments["city"])
        found[name] = str(parts_of(answer))
    assert found["reporting"] == found["generation"] != found["plain"]
    assert answer["ksteer"]["choices"][0]["tokens_steered"] > len(call["arguments"])


@pytest.mark.parametrize("mode", ["whole", "streamed"])
def test_a_steered_response_keeps_to_a_schema(web: httpx.Client, mode: str) -> None:
    text = {"format": {"type": "json_schema", "name": "x", "schema": OBJECT}}
    fields = {"text": text, "logit_bias": CLOSES_REASONING, "max_output_tokens": 100, "ignore_eos": False}
    found = {}
    for name, spec in SPECS.items():
        parts = parts_of(ask(web, mode, **fields, ksteer=spec))
        assert set(json.loads(parts["message"])) == {"city", "days"}
        found[name] = str(parts)
    assert found["plain"] not in (found["generation"], found["both"])


@pytest.mark.parametrize("streaming", [False, True])
def test_the_openai_client_steers_responses(client: OpenAI, web: httpx.Client, streaming: bool) -> None:
    answer: Any = client.responses.create(
        model=MODEL_NAME,
        input="hi",
        temperature=0,
        max_output_tokens=LENGTH,
        stream=streaming,
        extra_body={"ksteer": REPORTING, "ignore_eos": True},
    )
    last = list(answer)[-1].response if streaming else answer
    assert last.model_extra["ksteer"]["choices"][0]["tokens_steered"] == LENGTH
    assert parts_of(last.model_dump())["reasoning"] == chat_reasoning(web, SPEC)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_openai_client_raises_bad_request(client: OpenAI, streaming: bool) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(
            model=MODEL_NAME, input="hi", stream=streaming, extra_body={"ksteer": {**SPEC, "target": ["hot"]}}
        )
    assert caught.value.param == "ksteer.target.hot"


def test_a_cancelled_response_harms_nobody(web: httpx.Client) -> None:
    """On a busy machine it may have ended by itself before it is cancelled, which vLLM then says."""
    body = responses_body(background=True, max_output_tokens=480, ksteer={**SPEC, "num_steps": 64})
    started = web.post(RESPONSES, json=body).json()
    assert started["status"] == "queued"
    answer = web.post(f"{RESPONSES}/{started['id']}/cancel")
    assert answer.json().get("status") == "cancelled" or "Cannot cancel" in answer.text
    assert parts_of(ask(web, ksteer=SPEC))["reasoning"] == chat_reasoning(web, SPEC)
