"""Does what the server says of itself agree with the ledger, and is it at rest once the load is over?"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import httpx

from benchmarks.load.changes import at_rest
from benchmarks.load.ledger import Ledger
from benchmarks.load.watch import metrics_of, total

__all__ = ["Accounts", "accounts", "final_state"]

Metrics = Counter[tuple[str, tuple[tuple[str, str], ...]]]


class Accounts:
    """What was found, and the checks that failed."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.problems: list[str] = []

    def expect(self, name: str, value: float | None, least: float, most: float) -> None:
        """A value that lies between two of the ledger's. None: the server has no such metric."""
        self.found[name] = {"server": value, "ledger": [least, most]}
        if value is not None and not least <= value <= most:
            self.problems.append(f"{name}: the server counts {value:g}, the ledger {least:g} to {most:g}")


def accounts(before: Metrics, after: Metrics, ledger: Ledger) -> Accounts:
    """Compare the growth of the server's counters with the ledger.

    A request the client gave up may have finished all the same, have been aborted, or not have been seen.
    """

    def grown(name: str, **labels: str) -> float | None:
        now = total(after, name, **labels)
        return None if now is None else now - (total(before, name, **labels) or 0)

    checked = Accounts()
    finished = sum(grown("vllm:request_success_total", finished_reason=r) or 0 for r in ("stop", "length"))
    gone = ledger.engine_cancelled
    checked.expect("requests finished", finished, ledger.engine_answered, ledger.engine_answered + gone)
    ended = grown("vllm:request_success_total")
    checked.expect("requests ended", ended, ledger.engine_answered, ledger.engine_answered + gone)
    errors = grown("vllm:request_success_total", finished_reason="error")
    checked.expect("requests ended by an error", errors, 0, 0)
    steered, left = ledger.steered_answered, ledger.steered_cancelled
    checked.expect("steered requests", grown("ksteer:steered_requests_total"), steered, steered + left)
    refused = ledger.refused_by_us
    checked.expect("refusals", grown("ksteer:refused_total"), refused, refused)
    checked.expect("edits dropped", grown("ksteer:dropped_edits_total"), 0, 0)
    labels = {name: len([1 for sample, _ in after if sample == name]) for name in ("ksteer:requests_total",)}
    checked.found["series of ksteer:requests_total"] = labels["ksteer:requests_total"]
    return checked


async def final_state(url: str, client: httpx.AsyncClient, resident: dict[str, Any] | None) -> Accounts:
    """No request runs or waits, no row and no slot is held, /health answers 200."""
    checked = Accounts()
    deadline = time.monotonic() + 30
    while True:
        metrics = metrics_of(url)
        running = total(metrics, "vllm:num_requests_running")
        waiting = total(metrics, "vllm:num_requests_waiting")
        if not (running or waiting) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    checked.expect("running", running, 0, 0)
    checked.expect("waiting", waiting, 0, 0)
    checked.expect("used share of the key-value cache", total(metrics, "vllm:kv_cache_usage_perc"), 0, 0)
    if resident is not None:
        now = await at_rest(client, resident)
        checked.expect("rows of steered requests", now.get("requests"), 0, 0)
        checked.expect("slots used", now.get("slots_used"), resident["slots_used"], resident["slots_used"])
        if set(now.get("digests", ())) != set(resident["digests"]):
            checked.problems.append("other probes are resident than before")
    health = await client.get("/health")
    checked.expect("status of /health", health.status_code, 200, 200)
    return checked
