"""Everything a request can get wrong: status 400, streamed or not, in both spellings, on both routes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from testbed.replies import CHAT, COMPLETIONS, MESSAGES, ROUTES, request_body, spellings
from tests.server.http.specs import BAD, Bad, spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unharmed")]

JSON = {"content-type": "application/json"}


def send(http: httpx.Client, route: str, fields: Any, *, stream: bool = False) -> httpx.Response:
    """Plain `json.dumps`, which writes NaN, Infinity and lone surrogates where httpx would refuse to."""
    body = request_body(route, stream=stream, **fields)
    return http.post(route, content=json.dumps(body), headers=JSON)


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 400, f"{response.status_code} {response.text[:300]}"
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["code"] == 400
    assert error["type"] == "BadRequestError"
    return error


@pytest.mark.parametrize("name", BAD)
def test_a_bad_spec_is_status_400(http: httpx.Client, name: str) -> None:
    bad: Bad = BAD[name]
    for route in ROUTES:
        for spelling, fields in spellings(bad.spec).items():
            for stream in (False, True):
                error = error_of(send(http, route, fields, stream=stream))
                place = f"{route} {spelling} stream={stream}: {error}"
                assert error["param"].startswith(bad.field), place
                assert error["message"].startswith(bad.field), place
                assert all(words in error["message"] for words in bad.says), place
                assert len(error["message"]) < 1000, place


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "not valid JSON"), ("{", "not valid JSON"), ("warm", "not valid JSON"),
     ("null", "expected an object"), ('"warm"', "expected an object"),
     ('{"alpha": ' + "1" * 5000 + "}", "not valid JSON")],
    ids=["empty", "cut off", "a word", "null", "a string", "5000 digits"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_xargs_text_that_is_no_spec(
    http: httpx.Client, route: str, stream: bool, text: str, says: str
) -> None:
    error = error_of(send(http, route, {"vllm_xargs": {"ksteer": text}}, stream=stream))
    assert error["param"] == "ksteer"
    assert says in error["message"]


@pytest.mark.parametrize("value", [None, spec(), True])
@pytest.mark.parametrize("route", ROUTES)
def test_xargs_values_that_are_not_text_are_vllms_own_refusal(
    http: httpx.Client, route: str, value: Any
) -> None:
    response = send(http, route, {"vllm_xargs": {"ksteer": value}})
    assert response.status_code == 400
    assert "ksteer" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_both_spellings_at_once(http: httpx.Client, route: str, stream: bool) -> None:
    fields = {**spellings(spec())["body"], **spellings(spec())["xargs"]}
    assert "given twice" in error_of(send(http, route, fields, stream=stream))["message"]


@pytest.mark.parametrize("carrier", ["extra_body", "extra_args", "sampling_params"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_spec_in_a_field_the_route_ignores(http: httpx.Client, route: str, carrier: str) -> None:
    error = error_of(send(http, route, {carrier: {"ksteer": spec()}}, stream=True))
    assert carrier in error["message"]
    assert send(http, route, {carrier: {"other": 1}}).status_code == 200


@pytest.mark.parametrize("key", ["ksteer_admission", "ksteer_capture"])
@pytest.mark.parametrize("route", ROUTES)
def test_the_engines_own_keys_are_refused(http: httpx.Client, route: str, key: str) -> None:
    fields = {"vllm_xargs": {key: "1", "ksteer": json.dumps(spec())}}
    assert key in error_of(send(http, route, fields, stream=True))["message"]


@pytest.mark.parametrize("depth", [50, 300, 700, 900, 960, 990, 100_000])
@pytest.mark.parametrize("route", ROUTES)
def test_deep_nesting(http: httpx.Client, route: str, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    for text in (deep, f'{{"probe": "tones", "target": {deep}}}', f'{{"probe": "tones", "where": {deep}}}'):
        for stream in (False, True):
            raw = json.dumps(request_body(route, stream=stream))
            in_body = http.post(route, content=f'{raw[:-1]}, "ksteer": {text}}}', headers=JSON)
            assert in_body.status_code == 400, in_body.text[:300]
            error_of(send(http, route, {"vllm_xargs": {"ksteer": text}}, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
def test_one_bad_prompt_of_several_refuses_the_request(http: httpx.Client, stream: bool) -> None:
    """The window holds tokens of the long prompts only; nothing has run when the short one is found."""
    fields = {
        "prompt": [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4]],
        **spellings(spec(where={"prompt": [3, 4]}))["body"],
    }
    error = error_of(send(http, COMPLETIONS, fields, stream=stream))
    assert "the prompt has 2 tokens" in error["message"]


@pytest.mark.parametrize("spelling", ["body", "xargs"])
@pytest.mark.parametrize("route", ROUTES)
def test_beam_search(http: httpx.Client, route: str, spelling: str) -> None:
    beam = {"use_beam_search": True, "n": 2, "logprobs": None, "top_logprobs": None}
    error = error_of(send(http, route, {**beam, **spellings(spec())[spelling]}))
    assert "beam search" in error["message"]
    assert error["param"] == "ksteer"
    streamed = send(http, route, {**beam, **spellings(spec())[spelling]}, stream=True)
    assert streamed.status_code == 400
    assert "beam search" in streamed.json()["error"]["message"]
    plain = send(http, route, beam)
    assert plain.status_code == 200, plain.text
    assert len(plain.json()["choices"]) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_the_openai_client_raises_bad_request(openai: OpenAI, route: str, stream: bool) -> None:
    """Also with stream=True the exception comes from `create`, not from reading the stream."""
    create: Any = openai.chat.completions.create if route == CHAT else openai.completions.create
    prompt = {"messages": MESSAGES} if route == CHAT else {"prompt": "w5"}
    with pytest.raises(BadRequestError) as caught:
        create(model="tiny", stream=stream, extra_body={"ksteer": spec(target=["hot"])}, **prompt)
    assert caught.value.status_code == 400
    assert caught.value.param == "ksteer.target.hot"
    assert "'hot'; probe 'tones' has: warm, cold, dry" in caught.value.message
