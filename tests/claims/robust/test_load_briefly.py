"""The load test itself, for some seconds; and that its ledger notices what it is there to notice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import httpx
import pytest

from benchmarks.load import traffic
from benchmarks.load.checks import accounts
from benchmarks.load.client import Ask, send
from benchmarks.load.ledger import Ledger
from benchmarks.load.report import markdown, tables_of
from benchmarks.load.watch import slope
from benchmarks.load_test import quiet_answers, under_load
from testbed.replies import COMPLETIONS, Candidate, Choice, Reply
from tests.claims.robust.conftest import Deployment

SECONDS = 15.0


@pytest.mark.slow
def test_some_seconds_of_everything(deployment: Deployment) -> None:
    source = random.Random(18)  # whose first draws are of all the kinds looked at below
    known = traffic.known_requests(source, 24)
    plain = quiet_answers(deployment.plain.url, [k for k in known if k.kind == "plain"])
    result, _ = asyncio.run(under_load(deployment.first, known, plain, source, SECONDS, 16, 0.5))
    assert result["problems"] == [], result["ledger"]["failures"]
    left = httpx.get(f"{deployment.first.url}/v1/ksteer", timeout=60).json()
    assert not {traffic.CHURN, traffic.MOVING} & {*left["probes"], *left["presets"]}
    kinds = result["ledger"]["kinds"]
    for kind in ("plain", "steered", "steered, with report", "client leaves a stream half way"):
        assert kinds[kind]["sent"] > 0
    assert kinds["plain"]["compared"] == kinds["plain"]["sent"]
    assert result["ledger"]["total"]["sent"] > 20  # 16 clients, and on a slow machine hardly two rounds
    tables = tables_of(result)
    about = {"command": "c", "device": "d", "concurrency": 16, "seed": 18}
    assert "It balances" in markdown({**about, **result}, tables, None)


def reply(*tokens: int, gap: float = 1.0) -> Reply:
    """Each token at the top, the next best `gap` behind."""
    steps = [{token: Candidate(-0.1), token + 1: Candidate(-0.1 - gap)} for token in tokens]
    return Reply([Choice(tokens, steps)])


def test_the_ledger_tells_a_wrong_token_from_a_near_tie() -> None:
    ledger = Ledger()
    for _ in range(5):
        ledger.sent("plain")
        ledger.ended("plain", "answered", 0.1)
    ledger.compared("plain", reply(5, 6), (reply(5, 6),))
    assert not ledger.problems()
    ledger.compared("plain", reply(5, 7, gap=1e-5), (reply(5, 6, gap=1e-5),))
    assert not ledger.problems()
    assert ledger.counts["plain"]["near_ties"] == 1
    ledger.compared("plain", reply(5, 6), (reply(9, 9), reply(5, 6)))  # one of two is enough
    assert not ledger.problems()
    ledger.compared("plain", reply(5, 9), (reply(5, 6),))
    ledger.compared("plain", reply(5), (reply(5, 6),))
    assert ledger.problems() == ["plain: 0 failed, 2 mismatched"]


def test_the_ledger_misses_no_request() -> None:
    ledger = Ledger()
    ledger.sent("plain")
    assert ledger.problems() == ["plain: 1 sent, 0 answered, refused or cancelled"]
    ledger.ended("plain", "refused", 0.1)
    assert not ledger.problems()
    ledger.sent("steered")
    ledger.failed("steered", "status 500")
    assert len(ledger.problems()) == 2


ANSWER = {"choices": [{"index": 0, "logprobs": None}]}
ERROR = {"error": {"message": "no", "type": "BadRequestError", "param": "ksteer.probe", "code": 400}}


def outcome(ask: Ask, status: int, body: Any) -> Counter[str]:
    """What the ledger says of a request that a server answers like this."""
    ledger = Ledger()

    async def ask_it() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await send(client, ask, ledger)

    asyncio.run(ask_it())
    return ledger.counts[ask.kind]


def test_only_the_expected_refusal_is_one() -> None:
    bad = Ask("bad", COMPLETIONS, {}, must_answer=False, refusals={400: "ksteer.probe"})
    assert outcome(bad, 400, ERROR)["refused"] == 1
    wrong_field = {"error": {**ERROR["error"], "param": "ksteer.alpha"}}
    for status, body in ((400, wrong_field), (500, ERROR), (404, ERROR), (400, {}), (200, ANSWER)):
        counts = outcome(bad, status, body)
        assert (counts["failed"], counts["refused"], counts["answered"]) == (1, 0, 0)
    good = Ask("good", COMPLETIONS, {})
    assert outcome(good, 200, ANSWER)["answered"] == 1
    for status, body in ((400, ERROR), (503, ERROR), (200, {"choices": []}), (200, {})):
        assert outcome(good, status, body)["failed"] == 1


def test_an_answer_without_its_report_is_a_failure() -> None:
    ask = Ask("report", COMPLETIONS, {}, report=True)
    assert outcome(ask, 200, ANSWER)["failed"] == 1
    assert outcome(ask, 200, {**ANSWER, "ksteer": {"choices": []}})["answered"] == 1


def test_the_servers_account_must_agree() -> None:
    def counted(finished: float, refused: float) -> Any:
        reason = (("finished_reason", "length"), ("model_name", "tiny"))
        return Counter(
            {
                ("vllm:request_success_total", reason): finished,
                ("ksteer:refused_total", (("reason", "probe"),)): refused,
            }
        )

    ledger = Ledger(engine_answered=10, engine_cancelled=2, refused_by_us=3)
    assert not accounts(counted(5, 1), counted(15, 4), ledger).problems
    assert not accounts(counted(5, 1), counted(17, 4), ledger).problems
    assert accounts(counted(5, 1), counted(14, 4), ledger).problems
    assert accounts(counted(5, 1), counted(18, 4), ledger).problems
    assert accounts(counted(5, 1), counted(15, 5), ledger).problems


def test_the_slope_is_that_of_a_line() -> None:
    assert slope([(at, 100 + 0.5 * at) for at in range(10)]) == pytest.approx(30.0)
    assert slope([(0.0, 1.0), (1.0, 2.0)]) is None
