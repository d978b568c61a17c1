"""The example deployment: it parses, its flags and files exist, its names and ports agree."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ksteer_vllm.spec.presets import read_presets
from tests.server.http.parsing import serve_flags

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples" / "deployment"
KUBERNETES = FOLDER / "kubernetes"
MANIFESTS = sorted(KUBERNETES.rglob("*.yaml"))


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> dict[tuple[str, str], Any]:
    found = {}
    for path in KUBERNETES.glob("base/*.yaml"):
        for document in documents(path):
            if "kind" in document and document["kind"] != "Kustomization":
                found[document["kind"], document["metadata"]["name"]] = document
    return found


COMPOSE = documents(FOLDER / "compose.yaml")[0]
BASE = manifests()
POD = BASE["StatefulSet", "ksteer"]["spec"]["template"]["spec"]
SERVER = POD["containers"][0]
COMMANDS = {"compose": COMPOSE["services"]["vllm-0"]["command"], "kubernetes": SERVER["args"]}


def options(arguments: list[str]) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in arguments if argument.startswith("--"))


@pytest.mark.parametrize("path", [*FOLDER.rglob("*.y*ml")], ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_file_is_yaml(path: Path) -> None:
    assert documents(path)


@pytest.mark.parametrize("where", COMMANDS)
def test_every_flag_is_one_of_vllm_serve(where: str) -> None:
    given = options(COMMANDS[where])
    assert {"--plugin", "--ksteer-probe-dir", "--ksteer-admin-key-file"} <= set(given)
    assert set(given) <= serve_flags()


def test_every_flag_in_the_readme_is_one_of_vllm_serve_or_ours() -> None:
    load = our_commands().commands["server"].commands["load"]
    ours = {flag for parameter in load.params for flag in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", (FOLDER / "README.md").read_text()))
    assert len(named) > 10
    assert named - {"--from-file", "--ksteer"} <= serve_flags() | ours


def our_commands() -> Any:
    from typer.main import get_command

    from ksteer_vllm.cli import app

    return get_command(app)


def test_what_the_server_reads_is_mounted() -> None:
    mounts = [mount["mountPath"] for mount in SERVER["volumeMounts"]]
    volumes = COMPOSE["services"]["vllm-0"]["volumes"]
    places = {
        "kubernetes": mounts,
        "compose": [volume.split(":")[-2] for volume in volumes] + ["/run/secrets"],
    }
    for where, arguments in COMMANDS.items():
        for argument in arguments:
            for path in re.findall(r"=(/[\w./-]+)", argument):
                assert any(path == place or path.startswith(place + "/") for place in places[where]), path
    assert all(mount.get("readOnly") for mount in SERVER["volumeMounts"] if mount["name"] != "shared-memory")
    assert next(volume for volume in volumes if ":/probes" in volume).endswith(":ro")
    declared = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for mount in SERVER["volumeMounts"]} == declared


def test_names_and_ports_agree() -> None:
    stateful = BASE["StatefulSet", "ksteer"]["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    clients, headless = BASE["Service", "ksteer"]["spec"], BASE["Service", stateful["serviceName"]]["spec"]
    monitor = BASE["PodMonitor", "ksteer"]["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"]  # or a change would miss those, and not say so
    assert stateful["selector"]["matchLabels"] == clients["selector"] == headless["selector"] == labels
    assert monitor["selector"]["matchLabels"] == labels
    (port,) = SERVER["ports"]
    for where in COMMANDS:
        assert options(COMMANDS[where])["--port"] == str(port["containerPort"])
    for service in (clients, headless):
        (exposed,) = service["ports"]
        assert (exposed["port"], exposed["targetPort"]) == (port["containerPort"], port["name"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert SERVER[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    assert monitor["podMetricsEndpoints"][0]["port"] == port["name"]
    annotations = stateful["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    claims = [v["persistentVolumeClaim"]["claimName"] for v in POD["volumes"] if "persistentVolumeClaim" in v]
    assert ("PersistentVolumeClaim", *claims) in BASE


def test_the_proxy_and_prometheus_know_every_replica() -> None:
    replicas = {f"{name}:8000" for name in COMPOSE["services"] if name.startswith("vllm-")}
    assert len(replicas) == 2
    proxy = (FOLDER / "nginx.conf").read_text()
    assert set(re.findall(r"server (\S+);", proxy)) == replicas
    assert "listen 8000;" in proxy
    (scraped,) = documents(FOLDER / "prometheus.yml")[0]["scrape_configs"]
    assert set(scraped["static_configs"][0]["targets"]) == replicas


def test_the_proxy_passes_on_nothing_that_has_no_key() -> None:
    """vLLM asks for its key under /v1; beyond that, health and the page alone."""
    proxy = (FOLDER / "nginx.conf").read_text()
    blocks = re.compile(r"^    location (.+?) \{(?: ([^\n]*) \}|\n(.*?)\n    \})$", re.MULTILINE | re.DOTALL)
    locations = {place: line or lines for place, line, lines in blocks.findall(proxy)}
    passed = {place for place, inside in locations.items() if "proxy_pass" in inside}
    assert passed == {"= /health", "/ksteer/", "/v1/", "/v1/ksteer/"}
    assert proxy.count("proxy_pass") == len(passed)
    assert locations["/"] == "return 404;"
    assert "limit_except GET { deny all; }" in locations["/v1/ksteer/"]


def test_files_named_by_compose_exist() -> None:
    for name in ("proxy", "prometheus", "grafana"):
        for volume in COMPOSE["services"][name]["volumes"]:
            assert (FOLDER / volume.split(":")[0]).exists(), volume
    dashboards = documents(FOLDER / "provisioning" / "dashboards" / "ksteer.yml")[0]["providers"][0]
    assert f"./grafana:{dashboards['options']['path']}:ro" in COMPOSE["services"]["grafana"]["volumes"]
    build = COMPOSE["services"]["vllm-0"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).is_file()
    assert (FOLDER / "../presets.yaml").is_file()


def test_presets_name_the_probes_that_are_loaded() -> None:
    loaded = {options(arguments)["--ksteer-probe"].split("=")[0] for arguments in COMMANDS.values()}
    for file in (KUBERNETES / "base" / "presets.yaml", ROOT / "examples" / "presets.yaml"):
        for spec in read_presets(file).values():
            assert {edit["probe"] for edit in spec.get("stack", [spec])} <= loaded


def test_the_job_and_the_init_container_are_commands_of_ours() -> None:
    job = documents(KUBERNETES / "load-probe.yaml")[0]["spec"]["template"]["spec"]["containers"][0]["command"]
    patch = documents(KUBERNETES / "from-hub" / "pull.yaml")[0]["spec"]["template"]["spec"]
    *shell, script = patch["initContainers"][0]["command"]
    assert shell == ["sh", "-ec"]
    removed, pulled = script.strip().splitlines()
    pull = shlex.split(pulled.removeprefix("exec "))
    assert job[:3] == ["ksteer", "server", "load"]
    assert pull[:2] == ["ksteer", "pull"]
    assert options(pull)["--out"] in removed.split()  # the container may start again, the volume stays
    assert "--digest" in options(pull)
    ours = our_commands()
    for command, arguments in (
        (ours.commands["server"].commands["load"], job[3:]),
        (ours.commands["pull"], pull[2:]),
    ):
        assert command.make_context("ksteer", list(arguments)).params, shlex.join(arguments)
    assert "--url=http://ksteer-replicas:8000" in job


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("name", ["base", "from-hub"])
def test_kubectl_builds_it(name: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / name)], capture_output=True, text=True, check=True
    ).stdout
    kinds = [document["kind"] for document in yaml.safe_load_all(built)]
    assert {"StatefulSet", "Service", "ConfigMap", "PodMonitor"} <= set(kinds)
    (replicas,) = [d for d in yaml.safe_load_all(built) if d["kind"] == "StatefulSet"]
    pod = replicas["spec"]["template"]["spec"]
    (probes,) = [volume for volume in pod["volumes"] if volume["name"] == "probes"]
    if name == "base":
        assert probes["persistentVolumeClaim"]["readOnly"]
        assert "PersistentVolumeClaim" in kinds
    else:
        assert "persistentVolumeClaim" not in probes
        assert [init["name"] for init in pod["initContainers"]] == ["pull-voices"]
        assert "PersistentVolumeClaim" not in kinds


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_docker_reads_the_compose_file() -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose")
    done = subprocess.run(
        ["docker", "compose", "-f", str(FOLDER / "compose.yaml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MODEL": "m", "VLLM_API_KEY": "k"},
    )
    assert done.returncode == 0, done.stderr
