"""The same change on every replica of a deployment, through each server's own `/v1/ksteer` routes.

Replicas do not know of each other. A change checks all of them first, and changes nothing if one is
unreachable, does not allow the change, or requires an admin key and none is given (a wrong key is noticed
later). Then it makes the change everywhere and reports the outcome of each replica. Nothing is rolled back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from ksteer_vllm.errors import UsageError

__all__ = ["Keys", "Outcome", "Replica", "every_address", "list_all", "load", "replica_of", "retire"]

ROUTES = "/v1/ksteer"


@dataclass(frozen=True)
class Keys:
    """What requests send: vLLM's API key, and the admin key that changes may need. Never shown."""

    api: str = ""
    admin: str = ""

    def headers(self) -> dict[str, str]:
        given = {"Authorization": f"Bearer {self.api}" if self.api else "", "X-KSteer-Admin-Key": self.admin}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Replica:
    """A server. url: without a path. host: the Host header to send if the url holds an address."""

    url: str
    host: str | None = None

    def client(self, keys: Keys, timeout: float) -> httpx.AsyncClient:
        headers = keys.headers() | ({"Host": self.host} if self.host else {})
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout)


@dataclass(frozen=True)
class Outcome:
    """The outcome on one replica.

    Attributes:
        replica: The server.
        done: Whether it now is as asked for.
        state: What happened, in a word or two.
        detail: The digest, or why it is not done.
        probes: Name -> digest of what it has loaded, where that was asked.
        presets: The names of its presets, where that was asked.
    """

    replica: Replica
    done: bool
    state: str
    detail: str = ""
    probes: Mapping[str, str] = field(default_factory=dict)
    presets: tuple[str, ...] = ()


class _NotDoneError(Exception):
    """A response that is not a success, in words."""


def replica_of(url: str) -> Replica:
    """The replica at an address.

    Args:
        url: http(s), host and port.

    Raises:
        UsageError: If it is not the address of a server.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"--url {url!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.path not in ("", "/"):
        raise UsageError(f"--url {url!r}: expected the address of a server, such as http://replica-0:8000")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError("--url: expected only scheme, host and port")
    return Replica(str(parsed.copy_with(path="/")).rstrip("/"))


def every_address(replica: Replica) -> list[Replica]:
    """Resolve a host name to one replica per address, as a headless Service lists them.

    Args:
        replica: The server whose host name is resolved.

    Returns:
        The replicas, ordered by address.

    Raises:
        UsageError: If the name is unknown, or the URL is https, whose certificates are for names.
    """
    url = httpx.URL(replica.url)
    if url.scheme == "https":
        raise UsageError(f"{replica.url}: --all-addresses needs http; name each https replica with --url")
    port = url.port or 80
    try:
        found = socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{replica.url}: {error.strerror or error}") from None
    addresses = sorted({str(entry[4][0]) for entry in found})
    host = url.netloc.decode("ascii")
    return [Replica(f"http://{_in_url(address)}:{port}", host) for address in addresses]


def _in_url(address: str) -> str:
    return f"[{address}]" if ipaddress.ip_address(address.partition("%")[0]).version == 6 else address


def list_all(replicas: Sequence[Replica], keys: Keys, timeout: float = 30.0) -> list[Outcome]:
    """List what each replica has loaded.

    Args:
        replicas: The servers.
        keys: What the requests send.
        timeout: Of one request, in seconds.

    Returns:
        One outcome per replica, in their order.
    """
    return asyncio.run(_each(replicas, keys, timeout, _listed))


def load(
    replicas: Sequence[Replica],
    keys: Keys,
    name: str,
    folder: str,
    *,
    digest: str | None = None,
    replace: bool = False,
    timeout: float = 120.0,
) -> list[Outcome]:
    """Load a folder under a name on every replica. All must have the digest that the first one loads.

    A replica that already has that digest under the name counts as done.

    Args:
        replicas: The servers.
        keys: What the requests send.
        name: What requests will call the probe.
        folder: The folder's name in the replicas' probe directories.
        digest: What the folder must hold; by default what the first replica finds.
        replace: Whether the name may be in use.
        timeout: Of one request, and of waiting for a busy server, in seconds.

    Returns:
        One outcome per replica, in their order.
    """
    return asyncio.run(_load(replicas, keys, name, folder, digest, replace, timeout))


def retire(replicas: Sequence[Replica], keys: Keys, name: str, timeout: float = 120.0) -> list[Outcome]:
    """Remove a probe's name on every replica. A replica without that name counts as done.

    Args:
        replicas: The servers.
        keys: What the requests send.
        name: The probe's name.
        timeout: Of one request, and of waiting for a busy server, in seconds.

    Returns:
        One outcome per replica, in their order.
    """
    return asyncio.run(_retire(replicas, keys, name, timeout))


async def _load(
    replicas: Sequence[Replica],
    keys: Keys,
    name: str,
    folder: str,
    digest: str | None,
    replace: bool,
    timeout: float,
) -> list[Outcome]:
    async def ready(client: httpx.AsyncClient, replica: Replica) -> Outcome:
        found = await _able(client, replica, keys, loads=True)
        if found.done and name in found.probes and not replace and found.probes[name] != digest:
            return Outcome(
                replica, False, "not asked", f"{name} is already loaded here, as {_short(found.probes[name])}"
            )
        return found

    before = await _each(replicas, keys, timeout, ready)
    if not all(outcome.done for outcome in before):
        return _nothing_done(before)

    def loading(wanted: str | None) -> Callable[[httpx.AsyncClient, Replica], Awaitable[Outcome]]:
        async def loaded(client: httpx.AsyncClient, replica: Replica) -> Outcome:
            found = next(outcome for outcome in before if outcome.replica is replica)
            if wanted is not None and found.probes.get(name) == wanted:
                return Outcome(replica, True, "had it", wanted)
            body = {"name": name, "folder": folder, "replace": replace}
            body |= {} if wanted is None else {"digest": wanted}
            answer = await _ask(client, "POST", f"{ROUTES}/probes", timeout, json=body)
            state = "replaced" if answer.status_code == 200 else "loaded"
            return Outcome(replica, True, state, answer.json()["digest"])

        return loaded

    outcomes = await _each(replicas[:1], keys, timeout, loading(digest))
    if not outcomes[0].done:
        return outcomes + [Outcome(other, False, "not asked") for other in replicas[1:]]
    return outcomes + await _each(replicas[1:], keys, timeout, loading(outcomes[0].detail))


async def _retire(replicas: Sequence[Replica], keys: Keys, name: str, timeout: float) -> list[Outcome]:
    async def ready(client: httpx.AsyncClient, replica: Replica) -> Outcome:
        return await _able(client, replica, keys, loads=False)

    before = await _each(replicas, keys, timeout, ready)
    if not all(outcome.done for outcome in before):
        return _nothing_done(before)

    async def retired(client: httpx.AsyncClient, replica: Replica) -> Outcome:
        found = next(outcome for outcome in before if outcome.replica is replica)
        if name not in found.probes:
            return Outcome(replica, True, "had none")
        answer = (await _ask(client, "DELETE", f"{ROUTES}/probes/{quote(name, safe='')}", timeout)).json()
        return Outcome(replica, True, answer["state"], answer["digest"])

    return await _each(replicas, keys, timeout, retired)


def _nothing_done(before: Sequence[Outcome]) -> list[Outcome]:
    return [Outcome(o.replica, False, "not asked", "is ready") if o.done else o for o in before]


async def _each(
    replicas: Sequence[Replica],
    keys: Keys,
    timeout: float,
    work: Callable[[httpx.AsyncClient, Replica], Awaitable[Outcome]],
) -> list[Outcome]:
    """Do the same on all at once; a failure on one becomes its outcome."""

    async def one(replica: Replica) -> Outcome:
        async with replica.client(keys, timeout) as client:
            try:
                return await work(client, replica)
            except _NotDoneError as error:
                return Outcome(replica, False, "refused", str(error))
            except httpx.HTTPError as error:
                return Outcome(replica, False, "unreachable", str(error) or type(error).__name__)
            except (ValueError, KeyError, TypeError, AttributeError):
                return Outcome(replica, False, "not understood", "not the response of a ksteer server")

    return list(await asyncio.gather(*(one(replica) for replica in replicas)))


async def _listed(client: httpx.AsyncClient, replica: Replica) -> Outcome:
    probes = (await _ask(client, "GET", f"{ROUTES}/probes")).json()["data"]
    presets = (await _ask(client, "GET", f"{ROUTES}/presets")).json()["data"]
    return Outcome(
        replica,
        True,
        "answers",
        probes={str(card["name"]): str(card["digest"]) for card in probes},
        presets=tuple(sorted(str(preset["name"]) for preset in presets)),
    )


async def _able(client: httpx.AsyncClient, replica: Replica, keys: Keys, *, loads: bool) -> Outcome:
    """What the replica has, if it allows the change. loads: it is a load; a retirement needs no folders."""
    lifecycle = (await _ask(client, "GET", ROUTES)).json()["lifecycle"]
    guarded = bool(lifecycle.get("admin_key"))
    if not lifecycle["probe_dirs"] and (loads or not guarded):
        raise _NotDoneError("changes are not enabled (--ksteer-probe-dir)")
    if guarded and not keys.admin:
        raise _NotDoneError("the admin key is missing (--admin-key-file)")
    if lifecycle.get("refused"):
        raise _NotDoneError(lifecycle["refused"])
    return await _listed(client, replica)


async def _ask(
    client: httpx.AsyncClient, method: str, path: str, patience: float = 0.0, **body: Any
) -> httpx.Response:
    """The response; 503 with Retry-After is retried for `patience` seconds. Raises _NotDoneError."""
    deadline = time.monotonic() + patience
    while True:
        answer = await client.request(method, path, **body)
        if answer.is_success:
            return answer
        pause = answer.headers.get("retry-after", "")
        if answer.status_code != 503 or not pause.isdecimal() or time.monotonic() + int(pause) > deadline:
            raise _NotDoneError(_reason(answer))
        await asyncio.sleep(int(pause))


def _reason(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        message = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        message = "it has no ksteer routes" if answer.status_code == 404 else answer.reason_phrase
    return f"{answer.status_code}: {str(message)[:300]}"


def _short(digest: str) -> str:
    return digest[:12]
