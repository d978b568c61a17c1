"""A server that steers by default, with keys, several names and vLLM's model-name check turned off."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from testbed.serving import Server
from tests.server.presets.asking import ROUTES, TAKE_SPECS, ask, problem_of, text_of
from tests.server.presets.conftest import ADMIN_KEY, PRESETS, WARM

pytestmark = pytest.mark.slow

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("route", TAKE_SPECS)
def test_what_says_nothing_gets_the_default(default_http: httpx.Client, route: str) -> None:
    """Equal to the spec given explicitly, and other than the opted-out: greedy texts of one server."""
    steered = text_of(default_http, route, ksteer=WARM)
    plain = text_of(default_http, route, ksteer=False)
    assert steered != plain
    for fields in ({}, {"ksteer": None}, {"model": "whatever"}, {"model": "whatever:8b"}):
        assert text_of(default_http, route, **fields) == steered, fields
    for fields in (
        {"ksteer": {"preset": "none"}},
        {"model": "tiny:none"},
        {"vllm_xargs": {"ksteer": "false"}},
    ):
        assert text_of(default_http, route, **fields) == plain, fields
    assert text_of(default_http, route, ksteer={**WARM, "alpha": 0}) == plain


def test_routes_that_take_no_spec_get_the_default_too(default_http: httpx.Client) -> None:
    chat = ROUTES[1]
    assert text_of(default_http, "/v1/messages") == text_of(default_http, chat)
    assert text_of(default_http, "/v1/messages", model="tiny:none") == text_of(
        default_http, chat, ksteer=False
    )
    other = text_of(default_http, "/v1/messages", model="tiny:cold.v2")
    assert other == text_of(default_http, chat, ksteer=PRESETS["cold.v2"])


def test_an_opt_out_that_a_route_would_lose_is_refused(default_http: httpx.Client) -> None:
    for said in (False, {"preset": "none"}):
        error = problem_of(ask(default_http, "/v1/messages", ksteer=said), 400)
        assert "would lose the spec" in error["message"]
    batch = {"model": "tiny:none", "messages": [[{"role": "user", "content": "w5"}]]}
    assert problem_of(default_http.post("/v1/chat/completions/batch", json=batch), 400)["param"] == "model"
    for model in ("tiny", "tiny:none", "tiny:warm"):
        tokens = {"model": model, "prompt": "w5 w6", "ksteer": False}
        assert default_http.post("/tokenize", json=tokens).json()["tokens"] == [5, 6]


@pytest.mark.parametrize("route", TAKE_SPECS[:2])
def test_beam_search_needs_an_opt_out(default_http: httpx.Client, route: str) -> None:
    """Opted out, its own requests, one per step and beam, are not steered either: each would give the first
    token another distribution."""
    beams = {"use_beam_search": True, "n": 1, "max_tokens": 6}
    error = problem_of(ask(default_http, route, **beams), 400)
    assert "beam search" in error["message"]
    plain = text_of(default_http, route, ksteer=False, max_tokens=6).strip()  # beams are detokenised at once
    assert text_of(default_http, route, ksteer=False, **beams).strip() == plain
    assert text_of(default_http, route, model="tiny:none", **beams).strip() == plain
    assert text_of(default_http, route, max_tokens=6).strip() != plain


def test_names_that_nobody_checks_are_never_silently_plain(default_http: httpx.Client) -> None:
    for route in TAKE_SPECS:
        cold = text_of(default_http, route, ksteer=PRESETS["cold.v2"])
        assert text_of(default_http, route, model="whatever:cold.v2") == cold
        problem_of(ask(default_http, route, model="tiny:hot"), 404)
        problem_of(ask(default_http, route, model="tiny:other:hot"), 404)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {"max_tokens": 2}}),
        ("/v1/completions/render", {"prompt": "w5"}),
        ("/v1/chat/completions/render", {"messages": [{"role": "user", "content": "w5"}]}),
        ("/generative_scoring", {"query": "w5", "items": ["w6"], "label_token_ids": [4, 5]}),
    ],
)
def test_other_routes_refuse_a_presets_name(
    default_http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    """Also where vLLM would take any name."""
    paths = default_http.get("/openapi.json").json()["paths"]
    if path not in paths:
        pytest.skip(f"this vLLM has no {path}")
    error = problem_of(default_http.post(path, json={"model": "tiny:warm", **body}), 400)
    assert "would lose" in error["message"], error


def test_the_default_is_listed_and_stays(default_http: httpx.Client) -> None:
    assert default_http.get("/v1/ksteer").json()["default"] == "warm"
    assert default_http.get("/v1/ksteer/presets/warm").json()["default"] is True
    names = [card["id"] for card in default_http.get("/v1/models").json()["data"]]
    assert names[0] == "tiny"
    assert {"tiny:warm", "tiny:none"} <= set(names)
    admin = {"X-KSteer-Admin-Key": ADMIN_KEY}
    assert problem_of(default_http.delete("/v1/ksteer/presets/warm", headers=admin), 409)


class TestKeys:
    ROUTES = (
        ("GET", ""),
        ("GET", "/probes"),
        ("POST", "/probes"),
        ("GET", "/probes/tones"),
        ("POST", "/probes/tones"),
        ("DELETE", "/probes/tones"),
        ("GET", "/presets"),
        ("GET", "/presets/warm"),
        ("PUT", "/presets/warm"),
        ("DELETE", "/presets/both"),
        ("GET", "/no/such/route"),
    )

    def test_nothing_answers_without_the_api_key(self, default_server: Server) -> None:
        for method, path in self.ROUTES:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-KSteer-Admin-Key": ADMIN_KEY}):
                url = f"{default_server.url}/v1/ksteer{path}"
                answer = httpx.request(method, url, headers=headers, timeout=60)
                assert answer.status_code == 401, (method, path)

    @pytest.mark.parametrize("key", [None, "", "wrong", ADMIN_KEY[:-1], ADMIN_KEY + "x", "schlüssel"])
    def test_changes_need_the_admin_key_too(self, default_http: httpx.Client, key: str | None) -> None:
        headers = JSON if key is None else {**JSON, "X-KSteer-Admin-Key": key.encode()}
        for method, path in self.ROUTES:
            if method == "GET":
                continue
            body = {"PUT": WARM, "POST": {"name": "p", "folder": "more"}}.get(method)
            if path == "/probes/tones" and body is not None:
                body = {"folder": "more", "replace": True}
            answer = default_http.request(method, f"/v1/ksteer{path}", json=body, headers=headers)
            assert problem_of(answer, 403)["param"] == "X-KSteer-Admin-Key"
        assert default_http.get("/v1/ksteer").json()["presets"] == list(PRESETS)

    def test_with_it_they_are_made(self, default_http: httpx.Client) -> None:
        admin = {"X-KSteer-Admin-Key": ADMIN_KEY}
        assert default_http.put("/v1/ksteer/presets/more", json=WARM, headers=admin).status_code == 201
        assert default_http.delete("/v1/ksteer/presets/more", headers=admin).status_code == 200
        assert default_http.get("/v1/ksteer").json()["lifecycle"]["admin_key"] is True

    def test_no_key_is_told(self, default_http: httpx.Client, default_server: Server) -> None:
        assert ADMIN_KEY not in default_server.log
        assert ADMIN_KEY not in default_http.get("/v1/ksteer").text
