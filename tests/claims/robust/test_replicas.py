"""`ksteer server` against stand-ins for servers: what it asks, in which order, and what it makes of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ksteer_vllm import UsageError
from ksteer_vllm.cli import app
from ksteer_vllm.server.replicas import Replica, every_address, replica_of


class StandIn(ThreadingHTTPServer):
    """Answers as a server's routes do; `folders` are those it can load: name -> digest."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), Handler)
        self.probes: dict[str, str] = {}
        self.folders = {"calm-v2": "d" * 64}
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.busy = 0
        self.lifecycle: dict[str, Any] = {"probe_dirs": 1}
        self.broken = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, _, _ in self.seen if method != "GET"]


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any, **headers: str) -> None:
        content = self.server.broken or json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.answer(
            status, {"error": {"message": message, "type": "", "param": None, "code": status}}, **headers
        )

    def handle_any(self) -> None:
        server, length = self.server, int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.seen.append((self.command, self.path, headers, body))
        if self.command == "GET":
            cards = [{"name": name, "digest": digest} for name, digest in server.probes.items()]
            found = {"/v1/ksteer": {"lifecycle": server.lifecycle}, "/v1/ksteer/probes": {"data": cards}}
            self.answer(200, found.get(self.path, {"data": [{"name": "warm"}]}))
        elif server.busy:
            server.busy -= 1
            self.refuse(503, "another change is being made", retry_after="0")
        elif self.command == "POST":
            digest = server.folders.get(body["folder"])
            if digest is None:
                self.refuse(404, f"folder: no --ksteer-probe-dir directory has {body['folder']!r}")
            elif body.get("digest") not in (None, digest):
                self.refuse(400, f"digest: expected {body['digest']}")
            else:
                status = 200 if body["name"] in server.probes else 201
                server.probes[body["name"]] = digest
                self.answer(status, {"name": body["name"], "digest": digest})
        else:
            digest = server.probes.pop(self.path.rpartition("/")[2])
            self.answer(200, {"name": "", "digest": digest, "state": "retired"})

    do_GET = do_POST = do_DELETE = handle_any


@pytest.fixture
def two() -> Iterator[tuple[StandIn, StandIn]]:
    servers = (StandIn(), StandIn())
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def run(*arguments: str, servers: tuple[StandIn, ...] = ()) -> tuple[int, str]:
    """Exit status, and everything it said on one line."""
    urls = [part for server in servers for part in ("--url", server.url)]
    result = CliRunner().invoke(app, ["server", *arguments, *urls])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join((result.output + result.stderr).split())


def test_a_probe_reaches_every_replica(two: tuple[StandIn, StandIn]) -> None:
    status, said = run("load", "calm", "calm-v2", servers=two)
    assert status == 0, said
    assert said.count("loaded") == 2
    assert all(server.probes == {"calm": "d" * 64} for server in two)
    status, said = run("list", servers=two)
    assert status == 0
    assert said.count(f"calm ({'d' * 12})") == 2
    assert said.count("presets: warm") == 2
    status, said = run("retire", "calm", servers=two)
    assert status == 0
    assert said.count("retired") == 2
    assert all(not server.probes for server in two)


def test_the_first_replicas_digest_is_asked_of_the_others(two: tuple[StandIn, StandIn]) -> None:
    two[1].folders["calm-v2"] = "e" * 64
    status, said = run("load", "calm", "calm-v2", servers=two)
    assert status == 1
    assert f"1 of 2 replicas changed and stay so; not: {two[1].url}" in said
    assert "400: digest" in said
    assert (two[0].probes, two[1].probes) == ({"calm": "d" * 64}, {})


def test_a_replica_without_the_folder_is_named(two: tuple[StandIn, StandIn]) -> None:
    two[1].folders.clear()
    status, said = run("load", "calm", "calm-v2", servers=two)
    assert status == 1
    assert f"1 of 2 replicas changed and stay so; not: {two[1].url}" in said
    assert "404: folder" in said
    assert two[0].probes  # nothing is undone
    two[1].folders["calm-v2"] = "d" * 64
    status, said = run("load", "calm", "calm-v2", "--replace", servers=two)
    assert status == 0, said
    assert two[0].probes == two[1].probes


def test_if_the_first_cannot_the_others_are_not_asked(two: tuple[StandIn, StandIn]) -> None:
    two[0].folders.clear()
    status, said = run("load", "calm", "calm-v2", servers=two)
    assert status == 1
    assert "nothing was changed" in said
    assert not two[1].changes


@pytest.mark.parametrize(
    "trouble", ["unreachable", "not enabled", "no key", "several servers", "taken", "nonsense", "list"]
)
def test_nothing_is_changed_unless_every_replica_can(two: tuple[StandIn, StandIn], trouble: str) -> None:
    second = two[1]
    if trouble == "unreachable":
        second.shutdown()
        second.server_close()
    elif trouble == "not enabled":
        second.lifecycle = {"probe_dirs": 0}
    elif trouble == "no key":
        second.lifecycle = {"probe_dirs": 1, "admin_key": True}
    elif trouble == "several servers":
        second.lifecycle = {"probe_dirs": 1, "refused": "these 2 API servers share no folder"}
    elif trouble == "taken":
        second.probes["calm"] = "f" * 64
    else:
        second.broken = b"<html>" if trouble == "nonsense" else b"[]"
    status, said = run("load", "calm", "calm-v2", servers=two)
    assert status == 1
    assert "nothing was changed" in said
    assert "is ready" in said
    assert not two[0].changes
    if trouble == "taken":
        assert run("load", "calm", "calm-v2", "--replace", servers=two)[0] == 0


def test_a_replica_that_has_it_already_is_left_alone(two: tuple[StandIn, StandIn]) -> None:
    two[0].probes["calm"] = "d" * 64
    status, said = run("load", "calm", "calm-v2", "--digest", "d" * 64, servers=two)
    assert status == 0, said
    assert "had it" in said
    assert not two[0].changes
    status, said = run("retire", "calm", servers=two)
    assert status == 0
    assert run("retire", "calm", servers=two)[0] == 2


def test_a_retirement_needs_no_folders(two: tuple[StandIn, StandIn], tmp_path: Path) -> None:
    """An admin key is enough for it, and for it alone."""
    (tmp_path / "admin").write_text("secret")
    key = ("--admin-key-file", str(tmp_path / "admin"))
    for server in two:
        server.probes["calm"] = "d" * 64
        server.lifecycle = {"probe_dirs": 0, "admin_key": True}
    assert "changes are not enabled" in run("load", "more", "calm-v2", *key, servers=two)[1]
    assert "the admin key is missing" in run("retire", "calm", servers=two)[1]
    assert not [server.changes for server in two if server.changes]
    status, said = run("retire", "calm", *key, servers=two)
    assert status == 0, said
    assert not any(server.probes for server in two)


def test_what_servers_say_and_addresses_are_no_markup(two: tuple[StandIn, StandIn]) -> None:
    status, said = run("load", "calm", "[/x][bold]", servers=two)
    assert status == 1
    assert "has '[/x][bold]'" in said
    assert "http://[::1]:1 " in run("list", "--url", "http://[::1]:1")[1]


def test_a_busy_replica_is_asked_again(two: tuple[StandIn, StandIn]) -> None:
    two[0].busy = 2
    assert run("load", "calm", "calm-v2", servers=two)[0] == 0
    assert len(two[0].changes) == 3


def test_replicas_that_differ_are_told(two: tuple[StandIn, StandIn]) -> None:
    two[0].probes["calm"] = "d" * 64
    status, said = run("list", servers=two)
    assert status == 1
    assert "the replicas differ" in said


def test_keys_come_from_files_and_are_not_shown(two: tuple[StandIn, StandIn], tmp_path: Path) -> None:
    for name in ("api", "admin"):
        (tmp_path / name).write_text(f"secret-{name}\n")
    keys = ("--api-key-file", str(tmp_path / "api"), "--admin-key-file", str(tmp_path / "admin"))
    two[1].folders.clear()
    status, said = run("load", "calm", "calm-v2", *keys, servers=two)
    assert status == 1
    assert "secret" not in said
    for _, _, headers, _ in two[0].seen:
        assert headers["authorization"] == "Bearer secret-api"
        assert headers["x-ksteer-admin-key"] == "secret-admin"
    (tmp_path / "api").write_text("two\nlines")
    assert run("load", "calm", "calm-v2", *keys, servers=two)[0] == 2
    (tmp_path / "api").unlink()
    assert "No such file" in run("load", "calm", "calm-v2", *keys, servers=two)[1]


def test_names_stay_one_part_of_the_path(two: tuple[StandIn, StandIn]) -> None:
    two[0].probes["../../v1/models"] = "d" * 64
    run("retire", "../../v1/models", servers=two)
    assert ("DELETE", "/v1/ksteer/probes/..%2F..%2Fv1%2Fmodels") in two[0].changes


@pytest.mark.parametrize(
    "url",
    [
        "",
        "replica-0:8000",
        "ftp://x",
        "http://",
        "http://x/v1",
        "http://u:p@x",
        "http://x?a=1",
        "http://[::1",
    ],
)
def test_what_is_no_address_of_a_server(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        replica_of(url)


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a headless Service resolves: every pod's address, at one port."""
    first = StandIn("127.0.0.1")
    port = first.server_address[1]
    second = StandIn("127.0.0.2", port)
    resolve = socket.getaddrinfo

    def resolved(host: Any, *arguments: Any, **fields: Any) -> Any:
        if host != "replicas.test":
            return resolve(host, *arguments, **fields)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (2, 1, 2)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    for server in (first, second):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://replicas.test:{port}"
    assert every_address(replica_of(url)) == [
        Replica(f"http://127.0.0.{n}:{port}", f"replicas.test:{port}") for n in (1, 2)
    ]
    status, said = run("load", "calm", "calm-v2", "--all-addresses", "--url", url)
    assert status == 0, said
    assert first.probes == second.probes == {"calm": "d" * 64}
    assert {headers["host"] for _, _, headers, _ in first.seen} == {f"replicas.test:{port}"}
    for server in (first, second):
        server.shutdown()
        server.server_close()


def test_names_that_cannot_be_resolved() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.invalid"):
        every_address(replica_of("http://nowhere.invalid:8000"))
    with pytest.raises(UsageError, match="needs http"):
        every_address(replica_of("https://replicas:8000"))
