"""A server's /metrics, after requests whose numbers are known, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from ksteer_vllm.telemetry.events import PREFIX
from testbed.serving import MODEL_NAME, Server
from tests.server.metrics.scrape import names, scrape, value, wait_for

pytestmark = pytest.mark.slow

PROMPT = [1, 5, 9, 30, 44, 70]
TOKENS = 8
TONES = {"probe": "tones", "target": ["warm"], "alpha": 2.0}
MOODS = {"probe": "moods", "target": ["calm"], "alpha": 2.0, "num_steps": 3}


def complete(http: httpx.Client, route: str = "/v1/completions", **fields: Any) -> httpx.Response:
    body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    return http.post(route, json={**body, **fields})


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("probe", {"ksteer": {**TONES, "probe": "nope"}}),
    ("target", {"ksteer": {**TONES, "target": ["hot"]}}),
    ("target", {"ksteer": {"stack": [TONES, {**TONES, "target": ["hot"]}]}}),
    ("layers", {"ksteer": {**TONES, "layers": [3]}}),
    ("steps", {"ksteer": {**TONES, "num_steps": 10**6}}),
    ("method", {"ksteer": {**TONES, "method": "caa"}, "stream": True}),
    ("where", {"ksteer": {**TONES, "where": {"prompt": [6, 9]}}}),
    ("stack", {"ksteer": {"stack": []}}),
    ("preset", {"ksteer": {"preset": "cold"}}),
    ("size", {"ksteer": {**TONES, "target": ["warm" * 2**15]}}),
    ("route", {"route": "/v1/embeddings", "ksteer": TONES}),
    ("other", {"ksteer": {**TONES, "force": 2}}),
]


def test_every_request_is_counted_once_and_exactly(server: Server, http: httpx.Client) -> None:
    before = scrape(server.url)
    for _ in range(3):
        assert complete(http).status_code == 200
    assert complete(http, ksteer=False).status_code == 200
    assert complete(http, ksteer={"preset": "warm"}).status_code == 200
    assert complete(http, ksteer={**MOODS, "where": "both"}, n=2, temperature=1, seed=1).status_code == 200
    stack = complete(http, ksteer={"stack": [TONES, MOODS]})
    assert stack.status_code == 200, stack.text
    reported = complete(http, ksteer={**TONES, "where": {"generation": [2, 5]}, "report": True})
    with http.stream("POST", "/v1/completions", json=_streamed()) as stream:
        assert sum(1 for _ in stream.iter_lines()) > 0
    for reason, fields in REFUSED:
        assert complete(http, **fields).status_code == 400, reason

    after = wait_for(
        server.url,
        lambda now: value(now, "ksteer:engine_steps_total") > value(before, "ksteer:engine_steps_total"),
    )

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert more("ksteer:steered_requests_total") == 5
    assert more("ksteer:requests_total", probe="tones", method="gradient", preset="") == 3
    assert more("ksteer:requests_total", preset="warm") == 1
    assert more("ksteer:requests_total", probe="moods") == 2
    # The last generated token is not steered: it never goes through the model.
    both = 2 * (len(PROMPT) + TOKENS - 1)
    assert more("ksteer:tokens_total", probe="tones") == 3 * TOKENS + 3
    assert more("ksteer:tokens_total", probe="moods") == both + TOKENS
    assert more("ksteer:gradient_steps_total", probe="tones") == 8 * (3 * TOKENS + 3)
    assert more("ksteer:gradient_steps_total", probe="moods") == 3 * (both + TOKENS)
    assert more("ksteer:num_steps_count", probe="tones") == 4
    assert more("ksteer:num_steps_sum", probe="moods") == 6
    (report,) = reported.json()["ksteer"]["choices"]
    assert report["tokens_steered"] == 3
    # Sampled are those that steer generation alone; they are told nothing of it.
    assert more("ksteer:relative_shift_count", probe="tones") == 4
    assert more("ksteer:relative_shift_count", probe="moods") == 1
    assert more("ksteer:relative_shift_sum", probe="tones") > report["mean_shift"] > 0
    assert "ksteer" not in stack.json()
    reasons = [reason for reason, _ in REFUSED]
    for reason in set(reasons):
        assert more("ksteer:refused_total", reason=reason) == reasons.count(reason), reason
    assert more("ksteer:refused_total") == len(REFUSED)
    assert more("ksteer:dropped_edits_total") == 0


def _streamed() -> dict[str, Any]:
    return {
        "model": MODEL_NAME, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
        "stream": True, "ksteer": TONES,
    }  # fmt: skip


def test_what_the_workers_did_and_hold(server: Server, http: httpx.Client) -> None:
    before = wait_for(server.url, lambda now: value(now, "ksteer:resident_probes") > 0)
    assert complete(http, ksteer=TONES).status_code == 200

    def steered(samples: Any) -> float:
        return value(samples, "ksteer:steered_engine_steps_total")

    after = wait_for(server.url, lambda now: steered(now) >= steered(before) + TOKENS)
    assert value(after, "ksteer:resident_probes") == 2
    assert value(after, "ksteer:probe_slots", state="used") == 8  # an MLP probe takes four
    assert value(after, "ksteer:resident_bytes") > 0
    for name in ("prepare_seconds", "op_seconds"):
        assert value(after, f"ksteer:{name}_total") > value(before, f"ksteer:{name}_total")
    assert value(after, "ksteer:engine_steps_total") >= steered(after)


def test_events_are_lines_of_json(server: Server, http: httpx.Client) -> None:
    complete(http, ksteer={**TONES, "probe": "nobody's"})
    lines = [line.partition(PREFIX)[2] for line in server.log.splitlines() if PREFIX in line]
    events = [json.loads(line) for line in lines]
    started = [event for event in events if event["event"] == "started"]
    assert len(started) == 1
    assert set(started[0]["probes"]) == {"tones", "moods"}
    refused = [event for event in events if event["event"] == "refused"]
    assert {"event": "refused", "reason": "probe", "parameter": "ksteer.probe"} in refused


def test_every_metric_of_the_dashboard_is_there(server: Server, http: httpx.Client, repository: Path) -> None:
    complete(http, ksteer={**TONES, "report": True})
    dashboard = json.loads((repository / "examples/deployment/grafana/ksteer.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked = {name for query in queries for name in re.findall(r"(?:ksteer|vllm):\w+", query)}
    assert len(asked) > 15
    assert asked - names(server.url) == set()


def test_the_dashboard_is_one_that_grafana_takes(repository: Path) -> None:
    dashboard = json.loads((repository / "examples/deployment/grafana/ksteer.json").read_text())
    panels = dashboard["panels"]
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["title"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [panel["gridPos"] for panel in panels]
    for cell in cells:
        assert cell["w"] > 0
        assert cell["h"] > 0
        assert 0 <= cell["x"] <= 24 - cell["w"]
    for one, other in combinations(cells, 2):
        apart = any(
            one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at]
            for at, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (one, other)
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["datasource"]["type"] == "prometheus"
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
