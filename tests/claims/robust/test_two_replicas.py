"""Two real servers behind a proxy: a probe loaded through one call reaches both, or it says which not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from testbed.compare import assert_differ, assert_same
from testbed.replies import COMPLETIONS, Reply, reply_of, request_body
from tests.claims.robust.conftest import ADMIN_KEY, Deployment
from tests.claims.robust.round_robin import RoundRobin, round_robin
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CALM = {"probe": "calm", "target": ["warm"], "alpha": 3.0, "where": "both"}


@pytest.fixture
def proxy(deployment: Deployment) -> Iterator[RoundRobin]:
    with round_robin(deployment.first.url, deployment.second.url) as running:
        yield running
    for command in ("calm", "uneven"):  # whatever the test has left
        ksteer_server(deployment, "retire", command)


def ksteer_server(deployment: Deployment, *arguments: str, admin: bool = True) -> tuple[int, str]:
    """Exit status, and everything it said on one line."""
    keys = ["--api-key-file", str(deployment.api_key)]
    if admin and arguments[0] != "list":
        keys += ["--admin-key-file", str(deployment.admin_key)]
    urls = ["--url", deployment.first.url, "--url", deployment.second.url]
    result = CliRunner().invoke(app, ["server", *arguments, *urls, *keys])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join((result.output + result.stderr).split())


def ask(deployment: Deployment, url: str, **fields: Any) -> httpx.Response:
    body = request_body(COMPLETIONS, **fields)
    return httpx.post(url + COMPLETIONS, json=body, headers=deployment.headers, timeout=60)


def answer(deployment: Deployment, url: str, **fields: Any) -> Reply:
    response = ask(deployment, url, **fields)
    assert response.status_code == 200, response.text
    return reply_of(COMPLETIONS, response.json()["choices"])


def test_one_call_reaches_both(deployment: Deployment, proxy: RoundRobin) -> None:
    assert ask(deployment, proxy.url, ksteer=CALM).status_code == 400
    status, said = ksteer_server(deployment, "load", "calm", "churn-a")
    assert status == 0, said
    assert said.count(" loaded ") == 2
    plain = answer(deployment, deployment.plain.url)
    steered = answer(deployment, deployment.first.url, ksteer=CALM)
    assert_differ(steered, plain)
    proxy.served_by.clear()
    for _ in range(4):
        assert_same(answer(deployment, proxy.url, ksteer=CALM), steered)
        assert_same(answer(deployment, proxy.url), plain)
    assert set(proxy.served_by) == {deployment.first.url, deployment.second.url}
    status, said = ksteer_server(deployment, "list")
    assert status == 0, said
    assert said.count("calm (") == 2
    status, said = ksteer_server(deployment, "retire", "calm")
    assert status == 0, said
    for _ in range(2):
        refused = ask(deployment, proxy.url, ksteer=CALM)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "ksteer.probe"


def test_a_folder_one_replica_lacks(deployment: Deployment, proxy: RoundRobin) -> None:
    status, said = ksteer_server(deployment, "load", "calm", "churn-b")
    assert status == 1
    assert f"1 of 2 replicas changed and stay so; not: {deployment.second.url}" in said
    assert "404: folder: no --ksteer-probe-dir directory has 'churn-b'" in said
    assert ksteer_server(deployment, "list")[0] == 1
    outcomes = {ask(deployment, proxy.url, ksteer=CALM).status_code for _ in range(4)}
    assert outcomes == {200, 400}  # steered or refused, never unsteered
    target = deployment.second_probe_dir / "churn-b"
    shutil.copytree(deployment.stage.probe_dir / "churn-b", target)
    status, said = ksteer_server(deployment, "load", "calm", "churn-b", "--replace")
    shutil.rmtree(target)
    assert status == 0, said
    assert {ask(deployment, proxy.url, ksteer=CALM).status_code for _ in range(4)} == {200}


def test_folders_of_one_name_that_hold_different_probes(deployment: Deployment, proxy: RoundRobin) -> None:
    status, said = ksteer_server(deployment, "load", "uneven", "uneven")
    assert status == 1
    assert "400: digest" in said
    assert f"not: {deployment.second.url}" in said


@pytest.mark.usefixtures("proxy")
def test_without_the_admin_key_the_guarded_replica_refuses(deployment: Deployment) -> None:
    status, said = ksteer_server(deployment, "load", "calm", "churn-a", admin=False)
    assert status == 1
    assert "the admin key is missing (--admin-key-file)" in said
    assert "nothing was changed" in said
    cards = httpx.get(f"{deployment.first.url}/v1/ksteer/probes", timeout=60).json()["data"]
    assert "calm" not in [card["name"] for card in cards]


def test_keys_guard_every_route(deployment: Deployment) -> None:
    """The API key all of them, the admin key what changes; neither opens the other's door."""
    url, admin = deployment.second.url, {"X-KSteer-Admin-Key": ADMIN_KEY}
    routes = httpx.get(f"{deployment.first.url}/openapi.json", timeout=60).json()["paths"]
    checked = 0
    for path, operations in routes.items():
        for method in operations if path.startswith("/v1/ksteer") else ():
            place = url + path.replace("{name}", "mlp")
            body = {"name": "calm", "folder": "churn-a"} if method in ("post", "put") else None
            for headers in ({}, admin, {"Authorization": "Bearer wrong", **admin}):
                refused = httpx.request(method, place, json=body, headers=headers, timeout=60)
                assert refused.status_code == 401, (method, path)
            if method != "get":
                for key in ({}, {"X-KSteer-Admin-Key": "wrong"}, {"X-KSteer-Admin-Key": ""}):
                    headers = {**deployment.headers, **key}
                    refused = httpx.request(method, place, json=body, headers=headers, timeout=60)
                    assert refused.status_code in (400, 403), (method, path, refused.text)
                    assert refused.status_code == 403 or method == "put"  # the body was looked at first
            checked += 1
    assert checked >= 10
    cards = httpx.get(f"{url}/v1/ksteer/probes", headers=deployment.headers, timeout=60).json()["data"]
    assert "mlp" in [card["name"] for card in cards]
    assert "calm" not in [card["name"] for card in cards]
    listing = httpx.get(f"{url}/v1/ksteer", headers=deployment.headers, timeout=60).text
    assert ADMIN_KEY not in listing + deployment.second.log


FOLDERS = [
    "", ".", "..", "../churn-a", "churn-a/../churn-b", "/etc", "/", "churn-a/", "./churn-a", "churn-a\0",
    "a\\b", "~", "$HOME", "%2e%2e", "a" * 256, "outside", "loop", "files-outside", "fifo", "empty",
    "é" * 200, "\u2024\u2024",
]  # fmt: skip


def test_folders_lead_nowhere_else(deployment: Deployment) -> None:
    """Neither by their name nor by links; the answer names no path of the server's."""
    probe_dir, elsewhere = deployment.stage.probe_dir, deployment.stage.root / "elsewhere"
    shutil.copytree(probe_dir / "churn-a", elsewhere / "calm")
    (probe_dir / "outside").symlink_to(elsewhere / "calm")
    (probe_dir / "loop").symlink_to("loop")
    (probe_dir / "empty").mkdir()
    for name in ("files-outside", "fifo"):
        (probe_dir / name).mkdir()
    for name in ("probe.json", "probe.safetensors"):
        (probe_dir / "files-outside" / name).symlink_to(elsewhere / "calm" / name)
    os.mkfifo(probe_dir / "fifo" / "probe.safetensors")
    shutil.copy(probe_dir / "churn-a" / "probe.json", probe_dir / "fifo" / "probe.json")
    for folder in FOLDERS:
        for path, body in (
            ("/v1/ksteer/probes", {"name": "calm", "folder": folder}),
            ("/v1/ksteer/probes/calm", {"folder": folder}),
        ):
            refused = httpx.post(deployment.first.url + path, json=body, timeout=60)
            assert refused.status_code in (400, 404), (folder, refused.text)
            text = refused.text
            assert str(deployment.stage.root) not in text, text
            assert elsewhere.name not in text, text
    for name in ("..", "a/b", "a" * 300, "none", "", " ", "\u202e", "é"):
        body = {"name": name, "folder": "churn-a"}
        assert (
            httpx.post(f"{deployment.first.url}/v1/ksteer/probes", json=body, timeout=60).status_code == 400
        )
    cards = httpx.get(f"{deployment.first.url}/v1/ksteer/probes", timeout=60).json()["data"]
    assert "calm" not in [card["name"] for card in cards]


def test_a_probe_whose_folder_vanishes_goes_on(deployment: Deployment) -> None:
    """What is resident needs no folder; loading it again says that there is none."""
    url, probe_dir = deployment.first.url, deployment.stage.probe_dir
    shutil.copytree(probe_dir / "churn-a", probe_dir / "fleeting")
    body = {"name": "calm", "folder": "fleeting"}
    loaded = httpx.post(f"{url}/v1/ksteer/probes", json=body, timeout=60)
    assert loaded.status_code == 201, loaded.text
    before = answer(deployment, url, ksteer=CALM)
    shutil.rmtree(probe_dir / "fleeting")
    assert_same(answer(deployment, url, ksteer=CALM), before)
    again = httpx.post(f"{url}/v1/ksteer/probes", json={**body, "replace": True}, timeout=60)
    assert again.status_code == 404
    assert "'fleeting'" in again.json()["error"]["message"]
    assert_same(answer(deployment, url, ksteer=CALM), before)
    shutil.copytree(probe_dir / "churn-b", probe_dir / "fleeting")
    with (probe_dir / "fleeting" / "probe.safetensors").open("r+b") as file:
        file.truncate(100)
    damaged = httpx.post(f"{url}/v1/ksteer/probes", json={**body, "replace": True}, timeout=60)
    assert damaged.status_code == 400
    assert "probe.safetensors" in damaged.json()["error"]["message"]
    assert str(probe_dir) not in damaged.text
    assert_same(answer(deployment, url, ksteer=CALM), before)
    assert httpx.delete(f"{url}/v1/ksteer/probes/calm", timeout=60).status_code == 200


def test_loads_that_race(deployment: Deployment) -> None:
    """Each is done or refused, whole; the name ends as one that was loaded, and nothing else stays."""
    url = deployment.first.url

    def load(folder: str) -> httpx.Response:
        body = {"name": "calm", "folder": folder, "replace": True}
        return httpx.post(f"{url}/v1/ksteer/probes", json=body, timeout=60)

    def slots() -> int:
        resident = httpx.get(f"{url}/v1/ksteer", timeout=60).json()["lifecycle"]["resident"]
        return int(resident["slots_used"])

    before = slots()
    digests = {load(folder).json()["digest"] for folder in ("churn-a", "churn-b")}
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            answers = list(pool.map(load, ["churn-a", "churn-b"] * 3))
            assert {a.status_code for a in answers} <= {200, 409, 503}
            assert any(a.status_code == 200 for a in answers)
            assert all(a.headers["retry-after"].isdecimal() for a in answers if a.status_code == 503)
            card = httpx.get(f"{url}/v1/ksteer/probes/calm", timeout=60).json()
            assert card["digest"] in digests
    assert httpx.delete(f"{url}/v1/ksteer/probes/calm", timeout=60).status_code == 200
    wait_until(lambda: slots() == before, "the slots are free again", 30)  # retirement is not at once


def test_bodies_that_are_no_text(deployment: Deployment) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/ksteer/probes", "/v1/ksteer/probes/calm"):
        for content in (b"\x80", b"\xff\xfe{", b"{", b"[" * 3000, b'{"a":' * 600):
            refused = httpx.post(deployment.first.url + path, content=content, headers=headers, timeout=60)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == 400
        refused = httpx.post(deployment.first.url + path, content=b" " * 2**17, headers=headers, timeout=60)
        assert refused.status_code == 413


def test_a_repeated_key_is_its_last_value(deployment: Deployment) -> None:
    """On every way in, so that no part of the server takes another one."""
    url = deployment.first.url + COMPLETIONS
    base = json.dumps(request_body(COMPLETIONS))[:-1]
    headers = {"content-type": "application/json"}
    warm = '{"preset": "warm"}'

    def reply(text: str) -> Reply:
        response = httpx.post(url, content=f"{base}, {text}}}", headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        return reply_of(COMPLETIONS, response.json()["choices"])

    plain, steered = reply('"user": "u"'), reply(f'"ksteer": {warm}')
    assert_differ(plain, steered)
    assert_same(reply(f'"ksteer": null, "ksteer": {warm}'), steered)
    assert_same(reply(f'"ksteer": {warm}, "ksteer": null'), plain)
    assert_same(reply(f'"ksteer": {{"preset": "x"}}, "\\u006bsteer": {warm}'), steered)
