"""Every route the server has, taken from its own description: those that would lose a spec refuse it."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from ksteer_vllm.server.gate import STEERED_ROUTES
from testbed.replies import COMPLETIONS, ROUTES, reply_of, request_body, spellings
from testbed.serving import MODEL_NAME
from tests.server.http.specs import spec

pytestmark = pytest.mark.slow

JSON = {"content-type": "application/json"}
REFUSAL = "does not support steering and would lose the spec"

ESCAPED = json.dumps({"ksteer": spec()}).replace("ksteer", "\\u006bsteer")
BODIES: dict[str, Any] = {
    **{spelling: json.dumps(fields) for spelling, fields in spellings(spec()).items()},
    "sampling_params": json.dumps({"sampling_params": {"extra_args": {"ksteer": spec()}}}),
    "a batch": json.dumps({"requests": [{}, {"body": {"ksteer": spec()}}]}),
    "a list": json.dumps([{}, {"vllm_xargs": {"ksteer": "{}"}}]),
    "an escaped key": ESCAPED,
    "utf-16": json.dumps({"ksteer": spec()}).encode("utf-16"),
    "a bad spec": json.dumps({"ksteer": {"probe": 3}}),
}


def routes_of(client: httpx.Client) -> list[tuple[str, str]]:
    """(method, path) of every route that takes a body, parameters of the path filled in."""
    paths = client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), re.sub(r"\{[^}]*\}", "x", path))
        for path, methods in paths.items()
        for method in methods
        if method.upper() not in ("GET", "HEAD", "OPTIONS")
    ]


def takes_json(client: httpx.Client, path: str) -> bool:
    operation = client.get("/openapi.json").json()["paths"].get(path, {}).get("post", {})
    return "application/json" in operation.get("requestBody", {}).get("content", {})


@pytest.mark.usefixtures("serving")  # `which` names a server only when the test runs
@pytest.mark.parametrize("which", ["http", "plain_http"])
def test_every_other_route_refuses_a_spec_in_every_spelling(
    which: str, request: pytest.FixtureRequest
) -> None:
    """In every spelling; on the server with steering, and on the one without, with its development routes."""
    client: httpx.Client = request.getfixturevalue(which)
    routes = [
        (method, path)
        for method, path in routes_of(client)
        if path not in STEERED_ROUTES and not path.startswith("/v1/ksteer")
    ]
    assert len(routes) >= 8
    for method, path in [*routes, ("POST", "/no/such/route")]:
        for name, body in BODIES.items():
            response = client.request(method, path, content=body, headers=JSON)
            assert response.status_code == 400, f"{method} {path} {name}: {response.text[:300]}"
            error = response.json()["error"]
            assert error["message"].startswith(f"ksteer: {path} {REFUSAL}"), (path, name, error)
            assert error["param"] == "ksteer"
            assert all(steered in error["message"] for steered in STEERED_ROUTES)
    print(f"{which}: {len(routes)} routes: {', '.join(path for _, path in routes)}")


@pytest.mark.usefixtures("serving")  # `which` names a server only when the test runs
@pytest.mark.parametrize("which", ["http", "plain_http"])
def test_forms_are_looked_into(which: str, request: pytest.FixtureRequest) -> None:
    client: httpx.Client = request.getfixturevalue(which)
    path = "/v1/audio/transcriptions"
    sound = {"file": ("a.wav", b"RIFF ksteer \x00\xff", "audio/wav")}
    for data in ({"ksteer": json.dumps(spec())}, {"vllm_xargs": json.dumps({"ksteer": "{}"})}):
        for files in (sound, None):
            response = client.post(path, data={"model": MODEL_NAME, **data}, files=files)
            assert response.status_code == 400
            assert f"{path} {REFUSAL}" in response.json()["error"]["message"]
    for files in (sound, None):
        plain = client.post(path, data={"model": MODEL_NAME, "prompt": "ksteer"}, files=files)
        assert plain.status_code == 404  # the model takes no sound


@pytest.mark.usefixtures("unharmed")
def test_no_route_minds_text_that_mentions_the_word(http: httpx.Client) -> None:
    """Any mixture of fields will do: the routes may refuse it, in their own words."""
    text = 'ksteer "ksteer": {"probe": 1}'
    body = {
        "model": MODEL_NAME, "prompt": text, "input": text, "messages": [{"role": "user", "content": text}],
        "tokens": [5, 6], "token_ids": [5, 6], "sampling_params": {"max_tokens": 2}, "max_tokens": 2,
        "metadata": {"note": text}, "ksteer": None,
    }  # fmt: skip
    tried = [path for _, path in routes_of(http) if takes_json(http, path)]
    assert len(tried) >= 8
    statuses = {}
    for path in tried:
        response = http.post(path, json=body)
        statuses[path] = response.status_code
        assert "steering" not in response.text, (path, response.text[:300])
        assert response.status_code < 500 or path not in ROUTES
    print(statuses)
    assert statuses["/tokenize"] == statuses["/v1/messages"] == statuses[COMPLETIONS] == 200


@pytest.mark.usefixtures("unharmed")
def test_malformed_bodies_are_the_routes_own_errors(http: httpx.Client) -> None:
    for path in (*ROUTES, "/tokenize", "/v1/messages", "/v1/responses"):
        for text in (
            '{"ksteer": ',
            '{"ksteer": {}',
            "ksteer",
            "[" * 100_000,
            '{"\\u006b',
            "",
            b"\xff\x00",
        ):
            response = http.post(path, content=text, headers=JSON)
            assert 400 <= response.status_code < 500, (path, text[:20], response.text[:300])
            assert REFUSAL not in response.text


def test_a_trailing_slash_does_not_slip_through(http: httpx.Client) -> None:
    body = request_body(COMPLETIONS, ksteer=spec(target=["hot"]))
    assert http.post(f"{COMPLETIONS}/", json=body, follow_redirects=True).status_code == 400
    assert http.post("/tokenize/", json={"prompt": "w5", "ksteer": spec()}).status_code == 400


class TestInstalledButNotEnabled:
    """A server started without --plugin ksteer."""

    @pytest.mark.parametrize("route", ROUTES)
    def test_plain_requests_equal_those_of_the_steering_server(
        self, http: httpx.Client, plain_http: httpx.Client, route: str
    ) -> None:
        bodies = [request_body(route), request_body(route, ksteer=None)]
        for body in bodies:
            here, there = (client.post(route, json=body).json()["choices"] for client in (http, plain_http))
            assert reply_of(route, here) == reply_of(route, there)

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("route", ROUTES)
    def test_a_spec_is_refused(self, plain_http: httpx.Client, route: str, stream: bool) -> None:
        for wanted in (spec(), spec(alpha=0), {}, 0):
            for fields in spellings(wanted).values():
                response = plain_http.post(route, json=request_body(route, stream=stream, **fields))
                assert response.status_code == 400, response.text
                error = response.json()["error"]
                assert "steering is not enabled" in error["message"]
                assert "--plugin ksteer" in error["message"]
                assert error["param"] == "ksteer"
        assert plain_http.post(route, json=request_body(route)).status_code == 200

    @pytest.mark.parametrize("route", ROUTES)
    def test_beam_search_refuses_a_spec_too(self, plain_http: httpx.Client, route: str) -> None:
        body = request_body(route, use_beam_search=True, ksteer=spec())
        assert plain_http.post(route, json=body).status_code == 400
