"""Metrics on replies whose every figure is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ksteer_vllm.bench.combinations import avoided, combinations, name_of
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.evaluation.comparison import best_of, compare, difference_table, sentences
from ksteer_vllm.experiments.evaluation.metrics import UNSTEERED, reply_frame, summarise, towards
from ksteer_vllm.experiments.evaluation.side_effects import NextTokens, kl_divergence, mean_kl
from ksteer_vllm.experiments.evaluation.steerability import slope, steerability

LABELS = ("a", "b", "c")


def test_combinations() -> None:
    assert combinations(LABELS, [2, 1]) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")]
    assert len(combinations("abcdef", [1, 2, 3])) == 6 + 15 + 20
    assert avoided(LABELS, ["b"]) == ("a", "c")
    assert avoided(LABELS, ["b"], "none") == ()
    assert name_of(["a", "b"]) == "a + b"
    with pytest.raises(UsageError, match="sizes: 4 of 3 labels; allowed: 1 to 3"):
        combinations(LABELS, [4])


def _reply(
    variant: str, target: tuple[str, ...], prompt: int, logits: tuple[float, ...], nll: float
) -> Reply:
    tags = {"variant": variant, "target": list(target), "prompt": prompt}
    return Reply(
        Job(f"Question {prompt}?", tags=tags), "words", 5, True, nll, dict(zip(LABELS, logits, strict=True))
    )


def _seen(targets: list[tuple[str, ...]]) -> pd.DataFrame:
    """Two prompts, unsteered and steered by X to a, b; the second steered reply is not coherent."""
    replies = [
        _reply(UNSTEERED, (), 0, (0, 0, 0), 1.0),
        _reply(UNSTEERED, (), 1, (0, 0, 5), 2.0),
        _reply("X", ("a", "b"), 0, (math.log(3), math.log(9), 0), 1.5),
        _reply("X", ("a", "b"), 1, (0, math.log(3), 5), 4.0),
    ]
    verdicts = [
        Verdict(frozenset()),
        Verdict(frozenset("ac"), True),
        Verdict(frozenset("ab"), True),
        Verdict(frozenset("abc")),
    ]
    frame = reply_frame(replies, verdicts, [True, True, True, False], [0, 0, 0.5, 0], LABELS)
    return towards(frame, LABELS, targets)


def test_means_and_changes_against_the_unsteered_reply_to_the_same_prompt() -> None:
    table = summarise(_seen([("a", "b")]), ["variant", "target"])
    assert table["variant"].tolist() == [UNSTEERED, "X"]
    plain, steered = (row for _, row in table.iterrows())
    assert (plain["replies"], plain["success"], plain["on_target"]) == (2, 0, 0)
    assert plain["target_probability_change"] == plain["nll_change"] == 0
    assert (steered["success"], steered["coherent"], steered["on_target"]) == (1.0, 0.5, 0.5)
    # probabilities of a and b: 0.75 and 0.9, then 0.5 and 0.75; 0.5 before
    assert steered["target_probability_change"] == pytest.approx((0.325 + 0.125) / 2)
    assert steered["weakest_probability_change"] == pytest.approx((0.25 + 0.0) / 2)
    assert steered["others_probability_change"] == pytest.approx(0.0)
    assert (steered["others_shown"], plain["others_shown"]) == (0.5, 0.5)
    assert steered["others_shown_change"] == 0
    assert steered["nll_change"] == pytest.approx((0.5 + 2.0) / 2)
    assert steered["repetition"] == 0.25


def test_unsteered_replies_are_seen_from_every_target() -> None:
    seen = _seen([("a",), ("a", "b")])
    assert seen[seen["variant"] == UNSTEERED]["target"].tolist() == ["a", "a", "a + b", "a + b"]
    assert seen[seen["target"] == "a"]["success"].tolist() == [0.0, 1.0]
    assert seen[seen["target"] == "a"]["size"].unique().tolist() == [1]


def test_what_the_judge_or_the_rule_calls_incoherent_is_not_on_target() -> None:
    reply = _reply("X", ("a",), 0, (1, 1, 1), 1.0)
    plain = _reply(UNSTEERED, (), 0, (0, 0, 0), 1.0)
    for word, rule, expected in ((True, True, 1), (None, True, 1), (False, True, 0), (True, False, 0)):
        verdicts = [Verdict(frozenset()), Verdict(frozenset("a"), word)]
        frame = reply_frame([plain, reply], verdicts, [True, rule], [0, 0], LABELS)
        assert towards(frame, LABELS, [("a",)])["on_target"].tolist() == [0, expected]


def test_a_reply_that_was_not_judged_counts_neither_way() -> None:
    replies = [_reply(UNSTEERED, (), 0, (0, 0, 0), 1.0)] + [_reply("X", ("a",), 0, (1, 1, 1), 1.0)] * 2
    verdicts = [Verdict(frozenset()), Verdict(frozenset("a")), Verdict(frozenset(), judged=False)]
    frame = reply_frame(replies, verdicts, [True] * 3, [0] * 3, LABELS)
    table = summarise(towards(frame, LABELS, [("a",)]), ["variant"])
    assert table["success"].tolist() == [0, 1]


def test_slope_is_the_least_squares_one() -> None:
    assert slope([-1, 0, 1], [1, 3, 5]) == pytest.approx(2)
    x, y = [-1.0, -0.5, 0.0, 0.5, 1.0], [0.3, -1.0, 0.2, 2.0, 0.9]
    assert slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert slope([-1, 0, 1], [1, math.nan, 5]) == pytest.approx(2)
    assert math.isnan(slope([0, 1], [1, math.nan]))


def test_steerability_of_examples() -> None:
    rows = [
        {"variant": "X", "target": "a", "prompt": prompt, "multiplier": m, "propensity": k * m + prompt}
        for prompt, k in enumerate([2.0, -1.0, 4.0, 3.0])
        for m in (-1, 0, 1)
    ]
    (found,) = steerability(pd.DataFrame(rows)).to_dict("records")
    assert found == {
        "variant": "X",
        "target": "a",
        "examples": 4,
        "slope": pytest.approx(2),
        "negative_share": 0.25,
    }


def _next_tokens(logprobs: Any, count: int = 50) -> NextTokens:
    """The likeliest `count` tokens, in the order of their probability."""
    tokens = np.argsort(-logprobs)[:count]
    return NextTokens.of(tokens.tolist(), logprobs[tokens].tolist())


def test_kl_is_exact_with_the_whole_vocabulary_and_a_lower_bound_without() -> None:
    rng = np.random.default_rng(0)
    bounds = []
    for _ in range(50):
        p, q = (np.log(rng.dirichlet(np.full(50, 0.3)) + 1e-12) for _ in range(2))
        p, q = p - np.logaddexp.reduce(p), q - np.logaddexp.reduce(q)
        exact = float(np.exp(p) @ (p - q))
        assert kl_divergence(_next_tokens(p), _next_tokens(q)) == pytest.approx(exact, rel=1e-6)
        assert kl_divergence(_next_tokens(p), _next_tokens(p)) == pytest.approx(0, abs=1e-9)
        bound = kl_divergence(_next_tokens(p, 20), _next_tokens(q, 20))
        assert 0 <= bound <= exact + 1e-9
        bounds.append(bound / exact)
    assert np.mean(bounds) > 0.3, "a bound that says something"


def test_kl_of_distributions_with_nothing_in_common() -> None:
    here, there = NextTokens.of([0], [0.0]), NextTokens.of([1], [0.0])
    assert kl_divergence(here, there) > 10
    half = NextTokens.of([1, 0, 1], [np.log(0.5)] * 3)
    assert mean_kl([here, here], [here, half]) == pytest.approx(math.log(2) / 2)
    with pytest.raises(ValueError, match="1 and 0 positions"):
        mean_kl([here], [])


def _scores(**means: Any) -> pd.DataFrame:
    """variant -> share of successes, over 40 prompts and 3 targets, drawn independently."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"variant": name, "size": 1, "target": t, "prompt": p, "on_target": float(rng.random() < mean)}
        for name, mean in means.items()
        for t in LABELS
        for p in range(40)
    )


def test_paired_differences() -> None:
    seen = _scores(K=0.9, CAA=0.4, ACE=0.88)
    found = compare(seen, "K", "CAA", 1)
    assert found.outcome == "wins"
    assert found.pairs == 120
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(
        seen[seen["variant"] == "K"]["on_target"].mean() - seen[seen["variant"] == "CAA"]["on_target"].mean()
    )
    assert compare(seen, "CAA", "K", 1).outcome == "loses"
    assert compare(seen, "K", "ACE", 1).outcome == "ties"
    assert compare(seen, "K", "K", 1).outcome == "ties"
    with pytest.raises(ValueError, match="no reply of size 2 in common"):
        compare(seen, "K", "CAA", 2)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """With prompts that differ a lot, as replies to one prompt do, which resampling single replies would
    ignore."""
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        effect = rng.normal(0.2, 0.5, size=40)
        rows = [
            {"variant": v, "size": 1, "target": t, "prompt": p, "on_target": (v == "K") * effect[p]}
            for v in ("K", "CAA")
            for t in range(3)
            for p in range(40)
        ]
        found = compare(pd.DataFrame(rows), "K", "CAA", 1, seed=seed)
        covered += found.low <= 0.2 <= found.high
    assert 85 <= covered <= 100


def test_sentences_say_who_wins_and_who_ties() -> None:
    seen = _scores(K=0.9, CAA=0.4, ACE=0.88, LoReST=1.0)
    lines, found = sentences(seen, 1, ["K"], ["CAA", "ACE", "LoReST"])
    assert best_of(seen, 1)[0] == ("LoReST", 1.0)
    assert lines[0] == "Highest: LoReST, 1.00; ahead of every other variant."
    assert lines[1].startswith("K, 0.")
    assert lines[1].endswith(": beats CAA; ties with ACE; loses to LoReST.")
    assert [difference.outcome for difference in found] == ["wins", "ties", "loses"]
    table = difference_table(found)
    assert table.columns.tolist() == ["against", "K"]
    assert table["K"][0].startswith("+0.")
    assert table["K"][2].endswith("loses")
