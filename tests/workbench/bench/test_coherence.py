"""The coherence rule on replies made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ksteer_vllm.bench.coherence import CoherenceRule, measures, repetition
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.errors import UsageError

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def reply(nll: float | None = 1.0, *, text: str = "", tokens: int = 10, finished: bool = True) -> Reply:
    return Reply(Job("question"), text or " ".join(WORDS), tokens, finished, nll)


@pytest.fixture
def rule() -> CoherenceRule:
    return CoherenceRule.of([reply(0.5 + 0.01 * k, tokens=8 + k % 5) for k in range(101)])


def test_thresholds_are_set_by_the_unsteered_replies(rule: CoherenceRule) -> None:
    assert rule.max_perplexity == pytest.approx(1.5 * math.exp(1.45))
    assert rule.max_repetition == pytest.approx(0.2)
    assert (rule.min_length, rule.max_length) == (pytest.approx(8 / 3), pytest.approx(36))
    assert not rule.may_be_cut_off
    assert rule.unsteered == 1.0
    assert rule.least == pytest.approx(0.9)


@pytest.mark.parametrize(
    "found",
    [
        reply(math.log(1.5) + 1.46),
        reply(text="go on and on and on and on and on"),
        reply(tokens=2),
        reply(tokens=37),
        reply(finished=False),
        reply(None, text=" ", tokens=0),
    ],
    ids=["unlikely", "repetitive", "short", "long", "cut off", "empty"],
)
def test_each_threshold_counts(rule: CoherenceRule, found: Reply) -> None:
    assert not rule.coherent(found)


def test_a_reply_like_the_unsteered_ones_is_coherent(rule: CoherenceRule) -> None:
    assert rule.coherent(reply(math.log(1.5) + 1.44))
    assert rule.coherent(reply(0.0, tokens=3))


def test_a_model_that_rambles_may_be_cut_off() -> None:
    rule = CoherenceRule.of([reply(finished=k % 2 == 0) for k in range(10)])
    assert rule.coherent(reply(finished=False))


def test_the_budget_is_a_share_of_the_unsteered_share() -> None:
    good, empty = reply(), reply(None, tokens=0)
    rule = CoherenceRule.of([good] * 4 + [empty], budget=0.5)
    assert rule.unsteered == pytest.approx(0.8)
    assert rule.least == pytest.approx(0.4)
    assert rule.within_budget(0.4)
    assert not rule.within_budget(0.39)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("a b", 0.0), ("a b c d", 0.0), ("a b c a b c", 1 / 4), ("A a a a a", 2 / 3)],
)
def test_repetition_counts_word_triples_seen_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def test_measures() -> None:
    found = measures(reply(math.log(3), tokens=7))
    assert found.perplexity == pytest.approx(3)
    assert found.length == 7
    assert math.isnan(measures(reply(None)).perplexity)


def test_what_was_not_scored_cannot_be_judged(rule: CoherenceRule) -> None:
    with pytest.raises(ValueError, match="scored"):
        rule.coherent(replace(reply(), nll=None))
    with pytest.raises(UsageError, match="all 1 unsteered replies are empty"):
        CoherenceRule.of([reply(None)])
