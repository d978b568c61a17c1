"""One request of the load test: sent, followed to its end or given up, and entered in the ledger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.load.ledger import Ledger
from testbed.replies import Reply, choice_of, reply_of

__all__ = ["Ask", "send"]

JSON = {"content-type": "application/json"}
OVERDUE = 120.0
"""Seconds after which an answer is taken to be lost."""


@dataclass(frozen=True)
class Ask:
    """One request.

    expected: the replies it may get; empty: any. refusals: status -> the beginning of the error's param
    (None: not checked), of refusals that are in order. hang_up: seconds after which the client gives up, if
    nothing has come. chunks: of a stream, after which the client hangs up.
    """

    kind: str
    path: str
    body: dict[str, Any]
    content: bytes | None = None
    expected: tuple[Reply, ...] = ()
    must_answer: bool = True
    refusals: dict[int, str | None] = field(default_factory=dict)
    hang_up: float | None = None
    chunks: int | None = None
    choices: int = 1
    steered: bool = False
    by_us: bool = False
    report: bool = False


async def send(client: httpx.AsyncClient, ask: Ask, ledger: Ledger) -> None:
    """Send it and enter what became of it. Never raises but to be cancelled itself."""
    ledger.sent(ask.kind)
    start = time.monotonic()
    try:
        outcome = await asyncio.wait_for(_outcome(client, ask, ledger), ask.hang_up or OVERDUE)
    except TimeoutError:
        if ask.hang_up is None:
            ledger.failed(ask.kind, f"no answer in {OVERDUE:.0f} s")
            return
        outcome = "cancelled"
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AssertionError) as error:
        ledger.failed(ask.kind, f"{type(error).__name__}: {error}")
        return
    ledger.ended(ask.kind, outcome, time.monotonic() - start)
    if outcome == "answered":
        ledger.engine_answered += ask.choices
        ledger.steered_answered += ask.steered
    elif outcome == "cancelled":
        ledger.engine_cancelled += ask.choices
        ledger.steered_cancelled += ask.steered
    elif ask.by_us:
        ledger.refused_by_us += 1


async def _outcome(client: httpx.AsyncClient, ask: Ask, ledger: Ledger) -> str:
    content = ask.content if ask.content is not None else json.dumps(ask.body).encode()
    if ask.body.get("stream"):
        async with client.stream("POST", ask.path, content=content, headers=JSON) as response:
            if response.status_code != 200:
                return _refused(ask, response.status_code, await response.aread())
            return await _streamed(ask, response, ledger)
    response = await client.post(ask.path, content=content, headers=JSON)
    if response.status_code != 200:
        return _refused(ask, response.status_code, response.content)
    answer = response.json()
    _check(ask, answer["choices"], [answer], ledger)
    return "answered"


async def _streamed(ask: Ask, response: httpx.Response, ledger: Ledger) -> str:
    events: list[dict[str, Any]] = []
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            choices = [choice for event in events for choice in event["choices"]]
            _check(ask, choices, events, ledger, streamed=True)
            return "answered"
        events.append(json.loads(line.removeprefix("data: ")))
        assert "error" not in events[-1], events[-1]
        if ask.chunks is not None and len(events) >= ask.chunks:
            return "cancelled"
    raise AssertionError(f"the stream ended after {len(events)} events, without [DONE]")


def _refused(ask: Ask, status: int, content: bytes) -> str:
    error = json.loads(content)["error"]
    assert status in ask.refusals, f"status {status}: {error}"
    assert error["code"] == status, error
    assert {"message", "type", "param", "code"} <= set(error), error
    begins = ask.refusals[status]
    assert begins is None or str(error["param"]).startswith(begins), f"param {error['param']}: {error}"
    return "refused"


def _check(
    ask: Ask,
    choices: list[dict[str, Any]],
    answers: Iterable[dict[str, Any]],
    ledger: Ledger,
    streamed: bool = False,
) -> None:
    assert ask.must_answer, "answered, but expected a refusal"
    indices = {choice["index"] for choice in choices}
    assert indices == set(range(ask.choices)), f"{len(indices)} choices, expected {ask.choices}"
    if ask.report:
        reports = [answer["ksteer"] for answer in answers if answer.get("ksteer")]
        assert reports, "no report"
    if ask.expected:
        reply = Reply([choice_of(ask.path, choices)]) if streamed else reply_of(ask.path, choices)
        ledger.compared(ask.kind, reply, ask.expected)
