"""Probes loaded, replaced and retired under two API servers and two engines, with requests in flight."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.load.watch import metrics_of, total
from ksteer_vllm.probes.probe import Probe
from testbed.compare import assert_same
from testbed.models import make_model
from testbed.replies import COMPLETIONS, Reply, choice_of, reply_of, request_body
from testbed.serving import Server, serve
from tests.support.probe_directory import write_directory
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SEVERAL = 2
ASKS = 8
"""Requests per check, each over a connection of its own: for either API server, and either engine."""
HELD = 32
LONG = {"max_tokens": 200, "stream": False}
WARM = {"target": ["warm"], "alpha": 4.0, "where": "both"}


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this module's own, since it damages what is in it."""
    directory = tmp_path_factory.mktemp("live") / "probes"
    directory.mkdir()
    return write_directory(directory)


@pytest.fixture(scope="module")
def server(probes: Path, serving: None) -> Iterator[Server]:
    work = probes.parent
    flags = (
        "--ksteer-probe", f"start={probes / 'first'}", "--ksteer-layers", "1,2", "--ksteer-max-probes", "3",
        "--ksteer-probe-dir", str(probes), "--api-server-count", str(SEVERAL),
        "--data-parallel-size", str(SEVERAL), "--no-log-error-stack",
        "--additional-config", json.dumps({"ksteer": {"max_slots": 12}}),
    )  # fmt: skip
    dev = {"VLLM_SERVER_DEV_MODE": "1"}  # for /pause
    with serve(make_model("llama", work / "model"), work / "live.log", *flags, environment=dev) as running:
        running.wait_until_healthy()
        yield running


def call(server: Server, method: str, path: str, body: Any = None) -> httpx.Response:
    return httpx.request(method, f"{server.url}/v1/ksteer/{path}".rstrip("/"), json=body, timeout=60)


def load(server: Server, name: str, folder: str, **more: Any) -> httpx.Response:
    return call(server, "POST", "probes", {"name": name, "folder": folder, **more})


def ask(server: Server, probe: str, **fields: Any) -> httpx.Response:
    body = request_body(COMPLETIONS, ksteer={"probe": probe, **WARM}, **fields)
    return httpx.post(server.url + COMPLETIONS, json=body, timeout=120)


def answer(server: Server, probe: str, **fields: Any) -> Reply:
    return reply_in(ask(server, probe, **fields))


def reply_in(response: httpx.Response) -> Reply:
    assert response.status_code == 200, response.text
    return reply_of(COMPLETIONS, response.json()["choices"])


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """Both engines stand still, by vLLM's own route: what has come to them stays, and goes on afterwards."""
    assert httpx.post(f"{server.url}/pause", params={"mode": "keep"}, timeout=60).status_code == 200
    try:
        yield
    finally:
        assert httpx.post(f"{server.url}/resume", timeout=60).status_code == 200


@contextmanager
def held(server: Server, probe: str) -> Iterator[list[Future[Reply]]]:
    """Requests in flight for the whole block, and answered after it: one that has begun, and more than fit
    into the batches."""
    begun = threading.Event()
    with ThreadPoolExecutor(1 + HELD) as pool:
        replies = [pool.submit(streamed, server, probe, begun)]
        assert begun.wait(120)
        before = admitted(server)
        with paused(server):
            replies += [pool.submit(answer, server, probe, **LONG) for _ in range(HELD)]
            wait_until(lambda: admitted(server) == before + HELD, "all requests are admitted")
            yield replies


def streamed(server: Server, probe: str, begun: threading.Event) -> Reply:
    """A long reply chunk by chunk; `begun` is set with the first."""
    body = request_body(COMPLETIONS, ksteer={"probe": probe, **WARM}, **{**LONG, "stream": True})
    chunks = []
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                chunks += json.loads(line.removeprefix("data: "))["choices"]
                begun.set()
    return Reply([choice_of(COMPLETIONS, chunks)])


def admitted(server: Server) -> float:
    """Steered requests the server has admitted so far."""
    return total(metrics_of(server.url), "ksteer:steered_requests_total") or 0.0


def tokens(reply: Reply) -> tuple[int, ...]:
    return reply.outputs[0].token_ids


def digest(probes: Path, folder: str) -> str:
    return Probe.load_metadata(probes / folder).digest


def resident(server: Server) -> list[str]:
    status = call(server, "GET", "").json()
    return list(status["lifecycle"]["resident"]["digests"])


def wait_until_gone(server: Server, gone: str) -> None:
    wait_until(lambda: gone not in resident(server), f"{gone} is unloaded")


@pytest.fixture
def clean(server: Server, probes: Path) -> Iterator[None]:
    """Back to the one probe of the start."""
    yield
    for card in call(server, "GET", "probes").json()["data"]:
        if card["name"] != "start":
            assert call(server, "DELETE", f"probes/{card['name']}").status_code == 200
    for folder in ("second", "third", "other-labels"):
        wait_until_gone(server, digest(probes, folder))


@pytest.mark.usefixtures("clean")
def test_a_loaded_probe_steers_from_both_api_servers_and_is_gone_from_both(
    server: Server, probes: Path
) -> None:
    start = answer(server, "start")
    loaded = load(server, "tones", "first")
    assert loaded.status_code == 201, loaded.text
    assert loaded.json()["digest"] == digest(probes, "first")
    for _ in range(ASKS):
        assert_same(answer(server, "tones"), start, "the same probe under two names")
        assert call(server, "GET", "probes/tones").status_code == 200
    assert call(server, "DELETE", "probes/tones").json()["state"] == "retired"
    for _ in range(ASKS):
        assert ask(server, "tones").status_code == 400
        assert call(server, "GET", "probes/tones").status_code == 404
    assert digest(probes, "first") in resident(server)  # `start` still needs it


@pytest.mark.usefixtures("clean")
def test_replacing_a_probe_is_seen_at_once_and_requests_in_flight_finish_on_the_old_one(
    server: Server, probes: Path
) -> None:
    """Those admitted before are wholly the old one's, half written ones too; later ones the new one's."""
    assert load(server, "one", "second").status_code == 201
    assert load(server, "two", "third").status_code == 201
    old, new = answer(server, "one", **LONG), answer(server, "two", **LONG)
    assert tokens(old) != tokens(new)
    assert load(server, "swap", "second").status_code == 409  # max_probes
    assert call(server, "DELETE", "probes/two").status_code == 200
    assert load(server, "swap", "second").status_code == 201
    with ThreadPoolExecutor(6) as pool:
        with held(server, "swap") as before:
            replaced = load(server, "swap", "third", replace=True)
            assert replaced.status_code == 200, replaced.text
            after = [pool.submit(answer, server, "swap", **LONG) for _ in range(6)]
        for one in before:
            assert_same(one.result(), old, "in flight at the replacement")
        for one in after:
            assert_same(one.result(), new, "after the replacement")
    assert_same(answer(server, "one", **LONG), old, "the old probe under its other name")


@pytest.mark.usefixtures("clean")
def test_the_prefix_cache_never_mixes_an_old_and_a_new_probe(server: Server) -> None:
    prompt = [5 + i % 90 for i in range(96)]
    assert load(server, "swap", "second").status_code == 201
    before = answer(server, "swap", prompt=prompt, cache_salt="a")
    assert load(server, "swap", "third", replace=True).status_code == 200
    after = answer(server, "swap", prompt=prompt, cache_salt="a")
    alone = answer(server, "swap", prompt=prompt, cache_salt="b")
    assert_same(after, alone, "nothing of the old probe's blocks was read")
    assert tokens(after) != tokens(before)


@pytest.mark.usefixtures("clean")
def test_capacity_is_a_clear_refusal_and_never_an_unsteered_answer(server: Server, probes: Path) -> None:
    """Twelve slots, four for each probe of this kind; a fourth finds no name, one held by requests waits."""
    assert load(server, "one", "second").status_code == 201
    assert load(server, "two", "third").status_code == 201
    full = load(server, "three", "other-labels")
    assert full.status_code == 409
    assert "max_probes=3" in full.json()["error"]["message"]
    crowded = load(server, "two", "other-labels", replace=True)
    assert crowded.status_code == 409
    assert "0 of 12 are free" in crowded.json()["error"]["message"]
    assert tokens(answer(server, "two")) != tokens(answer(server, "one"))

    steered = answer(server, "two", **LONG)
    with held(server, "two") as running:
        retired = call(server, "DELETE", "probes/two")
        assert retired.json()["state"] == "retiring"
        full = load(server, "three", "other-labels")
        assert full.status_code == 503, full.text
        assert int(full.headers["retry-after"]) >= 1
        gone = ask(server, "two")
        assert (gone.status_code, "no probe named 'two'" in gone.text) == (400, True)
    for one in running:
        assert_same(one.result(), steered, "finished on the probe that was retired")
    wait_until_gone(server, digest(probes, "third"))
    assert load(server, "three", "other-labels").status_code == 201


@pytest.mark.usefixtures("clean")
def test_two_loads_of_one_name_race_and_one_wins(server: Server, probes: Path) -> None:
    start = threading.Barrier(4)

    def one(folder: str) -> int:
        start.wait(30)
        return load(server, "raced", folder).status_code

    with ThreadPoolExecutor(4) as pool:
        codes = sorted(pool.map(one, ("second", "third", "second", "third")))
    assert codes == [201, 409, 409, 409]
    winner = call(server, "GET", "probes/raced").json()["digest"]
    assert winner in (digest(probes, "second"), digest(probes, "third"))
    for _ in range(ASKS):
        assert call(server, "GET", "probes/raced").json()["digest"] == winner
    assert set(resident(server)) == {digest(probes, "first"), winner}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "x", "folder": "../probes/second"}, 400, "a single path component"),
        ({"name": "x", "folder": "/etc"}, 400, "a single path component"),
        ({"name": "x", "folder": "absent"}, 404, "no --ksteer-probe-dir directory"),
        ({"name": "../x", "folder": "second"}, 400, "name"),
        ({"name": "x", "folder": "second", "digest": "0" * 64}, 400, "digest"),
        ({"name": "x", "folder": "misfit"}, 400, "hidden_size 32"),
        ({"name": "x", "folder": "closed-layer"}, 400, "for layer 3; open: 1, 2"),
        ({"name": "start", "folder": "second"}, 409, "replace"),
        ({"name": "x"}, 400, "folder"),
        ({"name": "x", "folder": "second", "path": "/etc"}, 400, "path"),
    ],
)
def test_what_cannot_be_loaded_says_why_and_changes_nothing(
    server: Server, probes: Path, body: Any, status: int, words: str
) -> None:
    before = call(server, "GET", "probes").json(), resident(server)
    refused = call(server, "POST", "probes", body)
    assert refused.status_code == status, refused.text
    error = refused.json()["error"]
    assert words in error["message"]
    assert str(probes) not in refused.text
    assert (call(server, "GET", "probes").json(), resident(server)) == before


@pytest.mark.usefixtures("clean")
def test_a_folder_that_is_damaged_or_vanishes(server: Server, probes: Path) -> None:
    assert load(server, "stays", "second").status_code == 201
    before = answer(server, "stays")
    copy = shutil.copytree(probes / "third", probes / "copy")
    weights = copy / "probe.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    damaged = load(server, "x", "copy")
    assert damaged.status_code == 400
    assert "digest" in damaged.json()["error"]["message"]
    shutil.rmtree(copy)
    moved = (probes / "second").rename(probes.parent / "second")
    try:
        for _ in range(ASKS):
            assert_same(answer(server, "stays"), before, "its folder is gone, its weights are not")
        assert load(server, "x", "second").status_code == 404
    finally:
        moved.rename(probes / "second")


def test_a_probe_a_preset_needs_is_not_retired(server: Server) -> None:
    assert load(server, "needed", "second").status_code == 201
    preset = {"probe": "needed", "target": ["warm"], "alpha": 2.0}
    assert call(server, "PUT", "presets/uses-it", preset).status_code in (200, 201)
    refused = call(server, "DELETE", "probes/needed")
    assert refused.status_code == 409
    assert "'uses-it'" in refused.json()["error"]["message"]
    misfit = load(server, "needed", "other-labels", replace=True)
    assert misfit.status_code == 409
    assert call(server, "DELETE", "presets/uses-it").status_code == 200
    assert call(server, "DELETE", "probes/needed").status_code == 200


def test_the_log_has_no_error(server: Server) -> None:
    assert "Traceback" not in server.log
