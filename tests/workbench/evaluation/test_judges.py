"""Judges: who says which labels a reply shows."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.judges import Verdict, described, judge_for
from ksteer_vllm.data.styles import TONES
from ksteer_vllm.errors import UsageError
from tests.workbench.evaluation.fake_endpoint import FakeEndpoint

LABELS = ("casual", "cautious")
CASUAL = (
    "Hey pal, cool idea. To sell the chair, easy peasy, you can set a fair price and then meet the buyer. "
    "Good luck with that mate!"
)


def _reply(text: str = CASUAL, question: str = "How do I sell my chair?", **more: Any) -> Reply:
    return Reply(Job(question), text, tokens=len(text.split()), finished=True, **more)


def _answer(**shown: bool) -> str:
    return json.dumps({"labels": dict.fromkeys(LABELS, False) | shown, "coherent": True})


def test_exact_reader() -> None:
    cut = Reply(Job("How do I sell my chair?"), CASUAL, tokens=9, finished=False)
    verdicts = judge_for("reader", LABELS).judge([_reply(), _reply(question="How do I ship my chair?"), cut])
    assert verdicts == [
        Verdict(frozenset({"casual"}), True),
        Verdict(frozenset({"casual"}), False),
        Verdict(frozenset({"casual"}), False),
    ]
    assert verdicts[0].shows(["casual"])
    assert not verdicts[0].shows(LABELS)
    assert judge_for("reader", ["cautious"]).judge([_reply()]) == [Verdict(frozenset(), True)]


def test_exact_reader_knows_the_demo_language_only() -> None:
    with pytest.raises(UsageError, match="not polite; take 'probe' or 'openai'"):
        judge_for("reader", ["casual", "polite"])


def test_exact_readers_of_text(tmp_path: Path) -> None:
    french = _reply("Je pense que la mer est belle et que le sable est doux.")
    broken = _reply("oui oui oui oui oui oui oui")
    judge = judge_for("readers", ["french", "exclamations"])
    assert judge.judge([french, broken]) == [
        Verdict(frozenset({"french"}), True),
        Verdict(frozenset(), False),
    ]
    path = tmp_path / "behaviours.yaml"
    path.write_text("behaviours: {seaside: {instruction: Mention the sea., check: {mentions: mer}}}")
    assert judge_for("readers", ["seaside"], behaviours=path).judge([french])[0].shows(["seaside"])
    with pytest.raises(UsageError, match="'readers' has no reader for 'warm'; give it a check"):
        judge_for("readers", ["warm"], behaviours=path)


def test_evaluation_probe() -> None:
    judge = judge_for("probe", LABELS)
    read = _reply(propensity={"casual": 0.1, "cautious": -0.1, "other": 3.0})
    empty = Reply(Job("Why?"), "", tokens=0, finished=True)
    assert judge.judge([read, empty]) == [Verdict(frozenset({"casual"})), Verdict(frozenset())]
    with pytest.raises(UsageError, match="needs an evaluation probe"):
        judge.judge([_reply()])
    with pytest.raises(UsageError, match="does not know cautious"):
        judge.judge([_reply(propensity={"casual": 0.1})])


def test_unknown_judges_and_options_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown 'oracle'; known: reader, probe, openai"):
        judge_for("oracle", LABELS)
    with pytest.raises(UsageError, match="'probe' takes no url"):
        judge_for("probe", LABELS, url="http://localhost")
    for options in ({}, {"url": ""}, {"model": "m"}):
        with pytest.raises(UsageError, match=r"'openai' needs the address of an endpoint, .*--judge-url"):
            judge_for("openai", LABELS, **options)


def test_labels_of_known_tasks_are_described() -> None:
    found = described("tones", ["casual", "mine"])
    assert list(found) == ["casual"]
    assert found["casual"] == TONES["casual"]
    assert described("my.csv", ["casual"]) == {}


def test_endpoint_asks_for_structured_output_and_reads_it(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        return _answer(casual="pal" in json.loads(body["messages"][1]["content"])["reply"])

    with FakeEndpoint(answer).running() as endpoint:
        options = {"url": endpoint.url, "journal": tmp_path / "verdicts.jsonl"}
        judge = judge_for("openai", LABELS, descriptions={"casual": "as to a friend"}, **options)
        replies = [_reply(), _reply("Sell it."), _reply(), _reply('Sell "it"</reply>\nnow')]
        found = judge.judge(replies)
        assert [verdict.shown for verdict in found] == [{"casual"}, frozenset(), {"casual"}, frozenset()]
        assert all(verdict.coherent and verdict.judged for verdict in found)
        assert len(endpoint.bodies) == 3, "the same text is judged once"
        body = endpoint.bodies[0]
        assert body["model"] == "judge"
        assert "- casual: as to a friend\n- cautious" in body["messages"][0]["content"]
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["labels"]["required"] == list(LABELS)

        assert (
            judge_for("openai", LABELS, descriptions={"casual": "as to a friend"}, **options).judge(replies)
            == found
        )
        assert len(endpoint.bodies) == 3, "verdicts are kept in the journal"


def test_endpoint_asks_again_after_a_malformed_answer() -> None:
    answers = iter(["yes", json.dumps({"labels": {"casual": True}, "coherent": True}), _answer(casual=True)])
    with FakeEndpoint(lambda _: next(answers)).running() as endpoint:
        (verdict,) = judge_for("openai", LABELS, url=endpoint.url).judge([_reply()])
        assert verdict == Verdict(frozenset({"casual"}), True)
        assert len(endpoint.bodies) == 3


def test_a_reply_without_a_usable_answer_is_not_judged() -> None:
    def answer(body: dict[str, Any]) -> str:
        return _answer() if "Sell" in body["messages"][1]["content"] else '{"labels": {"casual": "maybe"}}'

    with FakeEndpoint(answer).running() as endpoint:
        judge = judge_for("openai", LABELS, url=endpoint.url)
        assert judge.judge([_reply(), _reply("Sell it.")]) == [
            Verdict(frozenset(), None, judged=False),
            Verdict(frozenset(), True),
        ]
        assert not judge.judge([_reply()])[0].judged, "it has answered before"


def test_an_endpoint_none_of_whose_answers_follow_the_schema_is_refused(tmp_path: Path) -> None:
    """One such reply says nothing yet, nor several if the journal has a usable answer."""
    options = {"model": "judge", "attempts": 1, "journal": tmp_path / "verdicts.jsonl"}
    unusable = [_reply("Sell it."), _reply("Sell it now.")]
    with FakeEndpoint(lambda _: "yes").running() as endpoint:
        judge = judge_for("openai", LABELS, url=endpoint.url, **options)
        assert not judge.judge(unusable[:1])[0].judged
        with pytest.raises(UsageError, match="no answer of 'judge' followed the schema"):
            judge.judge(unusable)
    with FakeEndpoint(lambda _: _answer()).running() as endpoint:
        judge_for("openai", LABELS, url=endpoint.url, **options).judge([_reply()])
    with FakeEndpoint(lambda _: "yes").running() as endpoint:
        judge = judge_for("openai", LABELS, url=endpoint.url, **options)
        assert [verdict.judged for verdict in judge.judge(unusable)] == [False, False]


def test_endpoint_tries_again_after_server_errors() -> None:
    answers: Any = iter([(500, {"error": {"message": "busy"}}), _answer(casual=True)])
    with FakeEndpoint(lambda _: next(answers)).running() as endpoint:
        (verdict,) = judge_for("openai", LABELS, url=endpoint.url).judge([_reply()])
        assert verdict.shown == {"casual"}


def test_endpoint_refusals_are_one_line() -> None:
    refusal = (400, {"error": {"message": "response_format is not supported"}})
    with (
        FakeEndpoint(lambda _: refusal).running() as endpoint,
        pytest.raises(UsageError, match=r"judge: http://127.*: .*response_format is not supported"),
    ):
        judge_for("openai", LABELS, url=endpoint.url, model="m").judge([_reply()])
    with pytest.raises(UsageError, match="cannot be reached"):
        judge_for("openai", LABELS, url=endpoint.url, model="m", attempts=1).judge([_reply()])


def test_endpoint_times_out() -> None:
    with FakeEndpoint(lambda _: _answer()).running() as endpoint:
        endpoint.delay = 1.0
        judge = judge_for("openai", LABELS, url=endpoint.url, timeout=0.1, attempts=1, model="m")
        with pytest.raises(UsageError, match="no answer in time"):
            judge.judge([_reply()])


def test_endpoint_asks_several_at_a_time() -> None:
    three = threading.Barrier(3)

    def answer(_: Any) -> Any:
        three.wait(60)  # for the others of its round
        return _answer()

    with FakeEndpoint(answer).running() as endpoint:
        judge = judge_for("openai", LABELS, url=endpoint.url, concurrency=3)
        judge.judge([_reply(f"Reply {index}") for index in range(9)])
        assert endpoint.most_at_once == 3


def test_the_model_is_found_only_where_there_is_one() -> None:
    with (
        FakeEndpoint(lambda _: "", models=("a", "b")).running() as endpoint,
        pytest.raises(UsageError, match="serves a, b: say which model"),
    ):
        judge_for("openai", LABELS, url=endpoint.url)
