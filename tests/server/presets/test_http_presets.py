"""Presets on a server without a default: by model name, in the body, and changed while serving."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.presets.asking import ROUTES, TAKE_SPECS, ask, problem_of, text_of
from tests.server.presets.conftest import OTHER_NAME, PRESETS, WARM

pytestmark = pytest.mark.slow

PLAIN_PRESETS = "/v1/ksteer/presets"


def test_models_lists_every_preset(http: httpx.Client) -> None:
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    names = [f"{base}:{preset}" for base in ("tiny", OTHER_NAME) for preset in PRESETS]
    assert list(cards) == ["tiny", OTHER_NAME, *names]
    for name in names:
        base = name.rpartition(":")[0]
        assert (cards[name]["parent"], cards[name]["root"]) == (base, base)
        assert cards[name]["max_model_len"] == cards[base]["max_model_len"]


@pytest.mark.parametrize("route", TAKE_SPECS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_way_to_name_a_preset_is_its_spec(http: httpx.Client, route: str, preset: str) -> None:
    """Greedy texts of one server on the same prompt: equal where the spec is, and another than the plain."""
    explicit = text_of(http, route, ksteer=PRESETS[preset])
    assert explicit != text_of(http, route)
    for fields in (
        {"model": f"tiny:{preset}"},
        {"model": f"{OTHER_NAME}:{preset}"},
        {"ksteer": {"preset": preset}},
        {"vllm_xargs": {"ksteer": json.dumps({"preset": preset})}},
        {"model": f"tiny:{preset}", "ksteer": {"preset": preset}},
    ):
        assert text_of(http, route, **fields) == explicit, fields


def test_messages_steers_by_model_name(http: httpx.Client) -> None:
    route = "/v1/messages"
    steered = text_of(http, route, model="tiny:warm")
    assert steered == text_of(http, "/v1/chat/completions", ksteer=WARM) != text_of(http, route)
    for said in (False, {"preset": "warm"}, {"preset": "none"}):
        response = ask(http, route, model="tiny:warm", ksteer=said)
        assert "would lose the spec" in problem_of(response, 400)["message"]
    assert text_of(http, route, ksteer=False) == text_of(http, route)


@pytest.mark.parametrize("route", TAKE_SPECS)
def test_fields_of_the_body_replace_the_presets(http: httpx.Client, route: str) -> None:
    weaker = text_of(http, route, ksteer={**WARM, "alpha": 1.0, "where": "both"})
    for fields in (
        {"ksteer": {"preset": "warm", "alpha": 1.0, "where": "both"}},
        {"model": "tiny:warm", "ksteer": {"alpha": 1.0, "where": "both"}},
        {"model": "tiny:warm", "vllm_xargs": {"ksteer": '{"alpha": 1.0, "where": "both"}'}},
    ):
        assert text_of(http, route, **fields) == weaker
    assert weaker != text_of(http, route, model="tiny:warm")


@pytest.mark.parametrize("route", TAKE_SPECS)
def test_opting_out_is_a_plain_request(http: httpx.Client, route: str) -> None:
    plain = text_of(http, route)
    for fields in ({"ksteer": False}, {"ksteer": {"preset": "none"}}, {"model": "tiny:none"}):
        assert text_of(http, route, **fields) == plain


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", TAKE_SPECS)
def test_refusals(http: httpx.Client, route: str, stream: bool) -> None:
    def refused(status: int, **fields: Any) -> dict[str, Any]:
        return problem_of(ask(http, route, stream=stream, **fields), status)

    assert refused(404, model="tiny:hot")["param"] == "model"
    assert "Presets: warm, cold.v2, both" in refused(404, model="tiny:hot")["message"]
    assert refused(404, model="huge:warm")["param"] == "model"
    error = refused(400, ksteer={"preset": "hot"})
    assert error["param"] == "ksteer.preset"
    assert "available: warm, cold.v2, both, none" in error["message"]
    assert refused(400, model="tiny:warm", ksteer={"preset": "both"})["param"] == "ksteer.preset"
    assert refused(400, model="tiny:warm", ksteer=False)["param"] == "ksteer.preset"
    assert refused(400, model="tiny:both", ksteer={"alpha": 1})["param"] == "ksteer.alpha"
    assert refused(400, model="tiny:warm", ksteer={"target": ["hot"]})["param"] == "ksteer.target.hot"


def test_beam_search_refuses_a_preset_and_takes_an_opt_out(http: httpx.Client) -> None:
    for route in TAKE_SPECS[:2]:
        beams = {"use_beam_search": True, "n": 2}
        assert "beam search" in problem_of(ask(http, route, model="tiny:warm", **beams), 400)["message"]
        assert text_of(http, route, ksteer=False, **beams) == text_of(http, route, **beams)


def test_routes_that_would_lose_a_preset_refuse_its_name(http: httpx.Client) -> None:
    batch = {"model": "tiny:warm", "messages": [[{"role": "user", "content": "w5"}]]}
    error = problem_of(http.post("/v1/chat/completions/batch", json=batch), 400)
    assert error["param"] == "model"
    assert "would lose" in error["message"]
    tokens = http.post("/tokenize", json={"model": "tiny:warm", "prompt": "w5 w6"})
    assert tokens.json()["tokens"] == [5, 6]


def test_a_report_by_model_name(http: httpx.Client) -> None:
    response = ask(http, "/v1/chat/completions", model="tiny:warm", ksteer={"report": True}).json()
    assert response["model"] == "tiny"
    assert response["ksteer"]["choices"][0]["index"] == 0


class TestChangesWhileServing:
    def test_a_preset_is_made_changed_and_taken_away(self, http: httpx.Client) -> None:
        url = f"{PLAIN_PRESETS}/live"
        assert problem_of(http.get(url), 404)["param"] == "name"
        created = http.put(url, json=WARM)
        assert created.status_code == 201
        card = {"name": "live", "spec": WARM, "model": "tiny:live", "default": False}
        assert created.json() == http.get(url).json() == card
        assert "tiny:live" in [model["id"] for model in http.get("/v1/models").json()["data"]]
        assert text_of(http, ROUTES[0], model="tiny:live") == text_of(http, ROUTES[0], ksteer=WARM)
        weaker = {**WARM, "alpha": 1.0, "where": "both"}
        assert http.put(url, json=weaker).status_code == 200
        assert text_of(http, ROUTES[0], model="tiny:live") == text_of(http, ROUTES[0], ksteer=weaker)
        assert card["name"] in [preset["name"] for preset in http.get(PLAIN_PRESETS).json()["data"]]
        assert http.delete(url).json() == {"name": "live", "deleted": True}
        problem_of(http.delete(url), 404)
        problem_of(ask(http, ROUTES[0], model="tiny:live"), 404)
        assert "tiny:live" not in http.get("/v1/models").text

    @pytest.mark.parametrize(
        ("name", "spec", "param"),
        [
            ("none", WARM, "name"),
            ("a b", WARM, "name"),
            ("x" * 65, WARM, "name"),
            ("live", {**WARM, "probe": "nope"}, "probe"),
            ("live", {**WARM, "layers": [3]}, "layers"),
            ("live", {**WARM, "force": 1}, "force"),
            ("live", {"preset": "warm"}, "preset"),
            ("live", {}, "probe"),
            ("live", [WARM], "body"),
            ("live", "warm", "body"),
        ],
    )
    def test_presets_that_cannot_be_are_refused(
        self, http: httpx.Client, name: str, spec: Any, param: str
    ) -> None:
        response = http.put(f"{PLAIN_PRESETS}/{name}", json=spec)
        assert response.status_code in (400, 409), response.text
        assert response.json()["error"]["message"]
        assert (problem_of(response, response.status_code)["param"] or "").endswith(param)
        problem_of(http.get(f"{PLAIN_PRESETS}/live"), 404)

    def test_large_deep_and_malformed_bodies(self, http: httpx.Client) -> None:
        problem_of(http.put(f"{PLAIN_PRESETS}/live", json={**WARM, "x": "y" * 70_000}), 413)
        for text in ("{", "", "[" * 60_000, '{"a": ' * 10_000, "\xff"):
            response = http.put(
                f"{PLAIN_PRESETS}/live", content=text, headers={"content-type": "application/json"}
            )
            assert response.status_code == 400, response.text[:300]

    def test_a_probe_is_loaded_steers_and_goes(self, http: httpx.Client) -> None:
        card = http.post("/v1/ksteer/probes", json={"name": "live", "folder": "more"})
        assert card.status_code == 201, card.text
        assert (card.json()["family"], card.json()["labels"]) == ("mlp", ["red", "blue"])
        assert http.get("/v1/ksteer/probes/live").json() == card.json()
        spec = {"probe": "live", "target": ["red"], "alpha": 3.0}
        assert text_of(http, ROUTES[0], ksteer=spec) != text_of(http, ROUTES[0])
        again = {"folder": "more", "digest": card.json()["digest"]}
        assert problem_of(http.post("/v1/ksteer/probes/live", json=again), 409)["param"] == "name"
        assert http.post("/v1/ksteer/probes/live", json={**again, "replace": True}).status_code == 200
        assert http.put(f"{PLAIN_PRESETS}/red", json=spec).status_code == 201
        problem_of(http.delete("/v1/ksteer/probes/live"), 409)
        http.delete(f"{PLAIN_PRESETS}/red")
        gone = http.delete("/v1/ksteer/probes/live").json()
        assert (gone["name"], gone["digest"]) == ("live", card.json()["digest"])
        problem_of(http.get("/v1/ksteer/probes/live"), 404)
        assert problem_of(ask(http, ROUTES[0], ksteer=spec), 400)["param"] == "ksteer.probe"

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"name": "p", "folder": "absent"}, 404),
            ({"name": "p", "folder": ".."}, 400),
            ({"name": "p", "folder": "../tones"}, 400),
            ({"name": "p", "folder": "more", "digest": "0" * 64}, 400),
            ({"name": "a/b", "folder": "more"}, 400),
            ({"name": "p", "folder": "more", "path": "/"}, 400),
            ({"name": "p", "folder": "more", "replace": "yes"}, 400),
            ({"folder": "more"}, 400),
        ],
    )
    def test_probes_that_cannot_be_loaded(
        self, http: httpx.Client, body: dict[str, Any], status: int
    ) -> None:
        problem_of(http.post("/v1/ksteer/probes", json=body), status)
        assert http.get("/v1/ksteer").json()["probes"] == ["tones"]


def test_the_status(http: httpx.Client) -> None:
    status = http.get("/v1/ksteer").json()
    assert status["model"]["name"] == "tiny"
    assert (status["model"]["hidden_size"], status["model"]["num_layers"]) == (64, 4)
    assert status["layers"] == [1, 2]
    assert (status["default"], status["probes"], status["presets"]) == (None, ["tones"], list(PRESETS))
    assert status["limits"]["max_steps"] == 256
    assert "num_steps" in status["methods"]["mlp"]["gradient"]
    assert (status["lifecycle"]["probe_dirs"], status["lifecycle"]["admin_key"]) == (1, False)


def test_the_description_names_every_route_and_status(http: httpx.Client) -> None:
    description = http.get("/openapi.json").json()
    ours = {path: methods for path, methods in description["paths"].items() if path.startswith("/v1/ksteer")}
    assert {path: sorted(methods) for path, methods in ours.items()} == {
        "/v1/ksteer": ["get"],
        "/v1/ksteer/probes": ["get", "post"],
        "/v1/ksteer/probes/{name}": ["delete", "get", "post"],
        "/v1/ksteer/presets": ["get"],
        "/v1/ksteer/presets/{name}": ["delete", "get", "put"],
    }
    for methods in ours.values():
        for method, operation in methods.items():
            assert "401" in operation["responses"]
            assert "422" not in operation["responses"]
            if method != "get":
                assert {"403", "404" if method == "delete" else "400", "503"} <= set(operation["responses"])
    put = ours["/v1/ksteer/presets/{name}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    text = json.dumps(description["components"]["schemas"][put["$ref"].rpartition("/")[2]])
    assert "probe" in text or "SteeringSpec" in text
