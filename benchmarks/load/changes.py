"""Probes loaded, replaced and retired, presets changed while requests run: by the server's own routes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import httpx

from benchmarks.load.ledger import Ledger
from benchmarks.load.traffic import CHURN, MOVING, MOVING_SPECS

__all__ = [
    "FOLDERS",
    "at_rest",
    "change_until",
    "changes_are_possible",
    "clear_up",
    "load",
    "put_preset",
    "residency",
]

FOLDERS = ("churn-a", "churn-b")
BUSY = (409, 503)
"""Another change is under way; or what it needs is still held by a probe that retires."""


def changes_are_possible(url: str) -> bool:
    """Whether the server has the routes and was started with a directory of probes."""
    answer = httpx.get(f"{url}/v1/ksteer", timeout=30)
    return answer.status_code == 200 and answer.json()["lifecycle"]["probe_dirs"] > 0


async def load(client: httpx.AsyncClient, folder: str, replace: bool = True) -> httpx.Response:
    body = {"name": CHURN, "folder": folder, "replace": replace}
    return await client.post("/v1/ksteer/probes", json=body)


async def put_preset(client: httpx.AsyncClient, spec: dict[str, Any]) -> httpx.Response:
    return await client.put(f"/v1/ksteer/presets/{MOVING}", json=spec)


async def change_until(
    stop: asyncio.Event, client: httpx.AsyncClient, source: random.Random, ledger: Ledger, every: float
) -> None:
    """One change, or two that race, every so many seconds; every answer must be one of those in order.

    A change that is under way when `stop` is set is waited for.
    """
    while not stop.is_set():
        await change_once(client, source, ledger)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), source.uniform(0.2, 1.8) * every)


async def change_once(client: httpx.AsyncClient, source: random.Random, ledger: Ledger) -> None:
    draw = source.random()
    if draw < 0.35:
        await _counted(ledger, "change: load or replace", load(client, source.choice(FOLDERS)), 200, 201)
    elif draw < 0.45:
        racing = [
            _counted(ledger, "change: loads that race", load(client, name), 200, 201) for name in FOLDERS
        ]
        await asyncio.gather(*racing)
    elif draw < 0.6:
        await _counted(
            ledger, "change: retire", client.delete(f"/v1/ksteer/probes/{CHURN}"), 200, refused=(404, *BUSY)
        )
    elif draw < 0.85:
        await _counted(ledger, "change: preset", put_preset(client, source.choice(MOVING_SPECS)), 200, 201)
    elif draw < 0.92:
        removal = client.delete(f"/v1/ksteer/presets/{MOVING}")
        await _counted(ledger, "change: preset removed", removal, 200, refused=(404, *BUSY))
    else:
        name = source.choice(["../churn-a", "/etc", "..", "nowhere", "", "a" * 300, "churn-a/../churn-b"])
        body = {"name": "other", "folder": name}
        await _counted(
            ledger, "change: bad folder", client.post("/v1/ksteer/probes", json=body), refused=(400, 404, 422)
        )


async def _counted(
    ledger: Ledger, kind: str, request: Any, *good: int, refused: tuple[int, ...] = BUSY
) -> None:
    ledger.sent(kind)
    start = time.monotonic()
    try:
        response: httpx.Response = await request
    except httpx.HTTPError as error:
        ledger.failed(kind, f"{type(error).__name__}: {error}")
        return
    if response.status_code in good:
        ledger.ended(kind, "answered", time.monotonic() - start)
    elif response.status_code in refused:
        if response.status_code == 503 and "retry-after" not in response.headers:
            ledger.failed(kind, f"503 without Retry-After: {response.text[:300]}")
        else:
            ledger.ended(kind, "refused", time.monotonic() - start)
    else:
        ledger.failed(kind, f"status {response.status_code}: {response.text[:300]}")


async def clear_up(client: httpx.AsyncClient) -> None:
    """Remove the loaded probe and the preset, once no other change is under way."""
    for route in (f"/v1/ksteer/presets/{MOVING}", f"/v1/ksteer/probes/{CHURN}"):
        while (await client.delete(route)).status_code == 503:
            await asyncio.sleep(0.2)


async def residency(client: httpx.AsyncClient) -> dict[str, Any] | None:
    """What the device tables and rows hold; None where the server does not say."""
    answer = await client.get("/v1/ksteer")
    if answer.status_code != 200:
        return None
    resident: dict[str, Any] = answer.json()["lifecycle"]["resident"]
    return resident


async def at_rest(
    client: httpx.AsyncClient, before: dict[str, Any], patience: float = 60.0
) -> dict[str, Any]:
    """The residency once it is what it was `before`, or after so many seconds of waiting for it."""
    deadline = time.monotonic() + patience
    while True:
        now = await residency(client) or {}
        settled = set(now.get("digests", ())) == set(before["digests"]) and not now.get("requests")
        if settled or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.2)
