"""Starting `vllm serve`: what must not start and says why, help, other plugins, several API servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from testbed.compare import assert_same
from testbed.probes import random_probe
from testbed.replies import (
    COMPLETIONS,
    MAX_TOKENS,
    ROUTES,
    Reply,
    reply_of,
    request_body,
    spellings,
)
from testbed.serving import (
    MODEL_NAME,
    SMALL,
    START_LIMIT,
    Server,
    child_environment,
    free_port,
    serve,
    vllm_command,
)
from tests.server.http.conftest import Folders
from tests.server.http.other_plugin import NAME, install_other_plugin, processes_it_ran_in
from tests.server.http.specs import MOODS, OPEN_LAYERS, STEERED, spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

Ended = dict[str, subprocess.CompletedProcess[str]]

SEVERAL = 2


@pytest.fixture(scope="module")
def ended(folders: Folders) -> Ended:
    """Commands that end by themselves, run side by side."""
    misfit = random_probe(hidden_size=32).save(folders.work / "misfit")
    model = str(folders.model)
    commands = {
        "bad layers": ("serve", model, "--plugin", "ksteer", "--ksteer-layers", "nope"),
        "not enabled": ("serve", model, "--ksteer-max-steps", "5"),
        "misfit": ("serve", model, *SMALL, "--port", str(free_port()), "--ksteer-probe", f"big={misfit}"),
        "help": ("serve", "--help=ksteer"),
    }

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            vllm_command(*commands[name]),
            env=child_environment(),
            capture_output=True,
            check=False,
            text=True,
            timeout=START_LIMIT,
        )

    with ThreadPoolExecutor(len(commands)) as pool:
        return dict(zip(commands, pool.map(run, commands), strict=True))


def test_a_bad_flag_is_a_usage_error(ended: Ended) -> None:
    result = ended["bad layers"]
    assert result.returncode == 2
    assert "argument --ksteer-layers: expected probe, all or a list of layers such as 3,5" in result.stderr


def test_a_flag_without_the_plugin_is_an_error(ended: Ended) -> None:
    result = ended["not enabled"]
    assert result.returncode == 2
    assert "error: --ksteer-max-steps needs --plugin ksteer" in result.stderr


def test_a_probe_that_does_not_fit_stops_the_start(
    ended: Ended,
) -> None:
    result = ended["misfit"]
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("ksteer: probe 'big' was fitted on 'tiny'")
    assert "Traceback" not in result.stderr
    assert "probe 'big' was fitted on 'tiny' with hidden_size 32" in result.stderr
    assert "this engine's model" in result.stderr
    assert "has 64" in result.stderr


def test_help_lists_the_flags(ended: Ended) -> None:
    result = ended["help"]
    assert result.returncode == 0, result.stderr[-2000:]
    for flag in ("--plugin", "--ksteer-probe", "--ksteer-layers", "--ksteer-max-steps"):
        assert flag in result.stdout


@pytest.fixture(scope="module")
def other(folders: Folders) -> dict[str, str]:
    folder = folders.work / "several"
    folder.mkdir()
    return install_other_plugin(folder)


@pytest.fixture(scope="module")
def several(folders: Folders, other: dict[str, str], serving: None) -> Iterator[Server]:
    """Two API servers and one engine; VLLM_PLUGINS names both plugins; --additional-config comes last."""
    presets = folders.work / "several.yaml"
    presets.write_text(json.dumps({"warm": STEERED["generation"]}))  # JSON is YAML
    flags = (
        *folders.probe_flags, "--ksteer-presets", str(presets), "--ksteer-layers", "all",
        "--api-server-count", str(SEVERAL), "--plugin", "ksteer", "--additional-config", '{"other": 1}',
    )  # fmt: skip
    environment = {**other, "VLLM_PLUGINS": f"{NAME},ksteer"}
    with serve(folders.model, folders.work / "several.log", *flags, environment=environment) as server:
        server.wait_until_healthy()
        yield server


def test_several_api_servers_steer_and_refuse(several: Server, offline: dict[str, dict[str, Reply]]) -> None:
    """A new connection per request, so that the kernel spreads them over the API servers."""
    for _ in range(6):
        for route in ROUTES:
            for name in ("plain", "generation", "default alpha"):
                fields = spellings(STEERED[name])["xargs"] if name in STEERED else {}
                response = httpx.post(several.url + route, json=request_body(route, **fields), timeout=60)
                assert response.status_code == 200, response.text
                assert_same(reply_of(route, response.json()["choices"]), offline[route][name], name)
            bad = request_body(route, stream=True, ksteer=spec(target=["hot"]))
            assert httpx.post(several.url + route, json=bad, timeout=60).status_code == 400
        refused = httpx.post(f"{several.url}/tokenize", json={"prompt": "w5", "ksteer": spec()}, timeout=60)
        assert "does not support steering" in refused.json()["error"]["message"]
    wait_until(  # one answers before the other
        lambda: several.log.count("Application startup complete") == SEVERAL, "both have started", START_LIMIT
    )


def test_several_api_servers_report_and_know_the_presets(
    several: Server, offline: dict[str, dict[str, Reply]]
) -> None:
    """A new connection per request; streamed too, and from whichever server it is, the report is its own."""
    asked: list[dict[str, Any]] = [
        spellings({"preset": "warm", "report": True})["xargs"],
        spellings({"preset": "warm", "report": True})["body"],
        {"model": f"{MODEL_NAME}:warm", "ksteer": {"report": True}},
    ]
    for route in ROUTES:
        for fields in asked * 3:
            response = httpx.post(several.url + route, json=request_body(route, **fields), timeout=60)
            assert response.status_code == 200, response.text
            assert_same(reply_of(route, response.json()["choices"]), offline[route]["generation"])
            assert response.json()["ksteer"]["choices"][0]["tokens_steered"] == MAX_TOKENS
            body = request_body(route, stream=True, **fields)
            chunks = httpx.post(several.url + route, json=body, timeout=60).text.splitlines()
            last = json.loads([line for line in chunks if line][-2].removeprefix("data: "))
            assert last["ksteer"]["choices"][0]["tokens_steered"] == MAX_TOKENS
            unknown = request_body(route, vllm_xargs={"ksteer": '{"preset": "hot"}'})
            assert "warm" in httpx.post(several.url + route, json=unknown, timeout=60).text


def test_every_layer_is_open(several: Server) -> None:
    closed_elsewhere = [layer for layer in range(4) if layer not in OPEN_LAYERS]
    body = request_body(COMPLETIONS, ksteer={"probe": MOODS, "target": ["calm"], "layers": closed_elsewhere})
    assert httpx.post(several.url + COMPLETIONS, json=body, timeout=60).status_code == 200
    body["ksteer"]["layers"] = [4]
    error = httpx.post(several.url + COMPLETIONS, json=body, timeout=60).json()["error"]
    assert "open: 0, 1, 2, 3" in error["message"]


def test_other_plugins_load_too(
    several: Server, other: dict[str, str], folders: Folders, server: Server
) -> None:
    """In the processes of API servers, engine and worker, whether VLLM_PLUGINS is set or not."""
    assert several.process.poll() is None
    assert len(processes_it_ran_in(other)) > SEVERAL
    assert server.process.poll() is None
    assert len(processes_it_ran_in(install_other_plugin(folders.work))) > 1


@pytest.fixture(scope="module")
def render_server(folders: Folders, serving: None) -> Iterator[Server]:
    with serve(folders.model, folders.work / "render.log", command=("launch", "render")) as server:
        server.wait_until_healthy()
        yield server


def test_a_server_without_an_engine_refuses_specs(render_server: Server) -> None:
    """`vllm launch render` only turns text into tokens; a spec would not come out again."""
    for route in ROUTES:
        body = {"model": "tiny", "prompt": "w5", "messages": [{"role": "user", "content": "w5"}]}
        path = f"{render_server.url}{route}/render"
        assert httpx.post(path, json=body, timeout=60).status_code == 200
        for fields in spellings(spec()).values():
            refused = httpx.post(path, json={**body, **fields}, timeout=60)
            assert refused.status_code == 400
            assert "does not support steering" in refused.json()["error"]["message"]
