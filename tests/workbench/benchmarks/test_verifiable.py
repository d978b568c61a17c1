"""The verifiable benchmark's items and arithmetic; nothing here starts an engine."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.verifiable.choices import Choice, correct, read_choices
from benchmarks.verifiable.forced import forced_spec
from benchmarks.verifiable.paired import Estimate, PairedBootstrap, Tally
from benchmarks.verifiable.questions import choosing, read_questions, reporting
from ksteer_vllm import SteeringSpec
from ksteer_vllm.data.behaviours import shipped_questions

CHOICES = read_choices()


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def test_there_are_120_items_of_four_kinds() -> None:
    assert Counter(choice.kind for choice in CHOICES) == {
        "knowledge": 40, "commonsense": 30, "words": 30, "arithmetic": 20,
    }  # fmt: skip


def test_the_right_option_is_everywhere_equally_often() -> None:
    assert Counter(choice.answer for choice in CHOICES) == dict.fromkeys(range(4), 30)


def test_no_question_and_no_option_is_there_twice() -> None:
    assert len({words(choice.question) for choice in CHOICES}) == len(CHOICES)
    for choice in CHOICES:
        assert len(set(map(words, choice.options))) == 4, choice.question


def test_items_are_well_formed() -> None:
    for choice in CHOICES:
        assert choice.question.endswith("?"), choice.question
        for text in (choice.question, *choice.options):
            assert text == " ".join(text.split())
        for option in choice.options:
            assert not option.endswith("."), choice.question
            assert option[0].isupper() or option[0].isdigit(), choice.question


def test_the_right_option_is_not_told_by_its_length() -> None:
    """Always taking the longest or the shortest option (shared where several are) stays near chance, .25: by
    at most .1, two and a half standard errors of 120 guesses."""
    for extreme in (max, min):
        hits = []
        for choice in CHOICES:
            lengths = [len(option) for option in choice.options]
            taken = [at for at, length in enumerate(lengths) if length == extreme(lengths)]
            hits.append((choice.answer in taken) / len(taken))
        assert np.mean(hits) == pytest.approx(0.25, abs=0.1)


def test_the_questions_are_in_two_equal_halves() -> None:
    first, second = choosing(), reporting()
    assert len(first) == len(second) >= 60
    assert sorted(first + second) == sorted(read_questions())
    assert first == choosing()


def test_no_question_is_there_twice_or_is_one_that_probes_are_fitted_to() -> None:
    own = [words(question) for question in read_questions()]
    fitted = {words(question) for question in shipped_questions()}
    assert len(set(own)) == len(own)
    assert not fitted & set(own)


def test_an_item_has_four_options_and_one_answer() -> None:
    item = CHOICES[0].model_dump()
    for wrong in ({"options": item["options"][:3]}, {"answer": 4}, {"kind": "trivia"}, {"more": 1}):
        with pytest.raises(ValidationError):
            Choice.model_validate({**item, **wrong})


def test_the_highest_score_wins() -> None:
    scores = np.full((len(CHOICES), 4), -2.0)
    scores[:, 0] = -1.0
    assert correct(CHOICES, scores).mean() == 0.25


@pytest.mark.parametrize(
    ("where", "window"),
    [
        (None, [9, None]),
        ("generation", [9, None]),
        ("both", [0, None]),
        ("prompt", [0, 10]),
        ({"generation": [0, 16]}, [9, 25]),
        ({"generation": [2, None]}, [11, None]),
        ({"prompt": [4, None], "generation": [0, 3]}, [4, 12]),
        ({"prompt": [4, 9], "generation": [0, 3]}, [4, 12]),
        ({"prompt": [0, 4]}, [0, 4]),
    ],
)
def test_a_given_reply_is_edited_where_a_generated_one_would_be(where: object, window: list[object]) -> None:
    spec = {"probe": "p", "target": ["a"], "fade": 8} | ({} if where is None else {"where": where})
    forced = forced_spec(spec, 10)
    assert forced == {"probe": "p", "target": ["a"], "where": {"prompt": window}}
    assert SteeringSpec.parse(forced).edits()
    stacked = forced_spec({"stack": [spec, spec], "report": True}, 10)
    assert stacked == {"stack": [forced, forced], "report": True}


def test_windows_with_a_gap_are_refused() -> None:
    where = {"prompt": [0, 4], "generation": [0, None]}
    with pytest.raises(ValueError, match=r"a gap between the windows \[0, 4\] and \[9, None\]"):
        forced_spec({"probe": "p", "target": ["a"], "where": where}, 10)


def table(questions: int = 200, replies: int = 3) -> np.ndarray:
    return (np.random.default_rng(5).random((questions, replies)) < 0.4).astype(float)


def test_an_interval_is_as_wide_as_the_normal_one() -> None:
    """400 independent questions, half of them hits: 1.96 * .5 / 20 to each side. 10,000 draws place a
    percentile to about a fiftieth of that, and shares of 400 come in steps of .0025."""
    tally = Tally.of(np.tile([0.0, 1.0], 200))
    value, low, high = PairedBootstrap(400).share(tally)
    assert value == 0.5
    assert (value - low, high - value) == pytest.approx((0.049, 0.049), abs=0.0035)


def test_replies_to_one_question_are_not_independent() -> None:
    """Three times the same reply says no more than one."""
    once = table(replies=1)
    draw = PairedBootstrap(len(once))
    assert draw.share(Tally.of(np.repeat(once, 3, axis=1))) == pytest.approx(draw.share(Tally.of(once)))


def test_a_difference_is_taken_within_the_questions() -> None:
    base = table()
    draw = PairedBootstrap(len(base))
    same, less = Tally.of(base), Tally.of(base - 0.1)
    assert draw.difference(same, same) == Estimate(0.0, 0.0, 0.0)
    assert draw.difference(same, less) == pytest.approx((0.1, 0.1, 0.1))
    low, high = draw.share(same)[1:]
    assert high - low > 0.05, "each of the two varies; their difference does not"


def test_opposites_vary_twice_as_much() -> None:
    base = table()
    draw = PairedBootstrap(len(base))
    _, low, high = draw.share(Tally.of(base))
    _, least, most = draw.difference(Tally.of(base), Tally.of(1 - base))
    assert most - least == pytest.approx(2 * (high - low))


def test_questions_count_by_their_replies() -> None:
    tally = Tally.of([[1, 1, 1], [0, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    assert tally.hits.tolist() == [3, 0, 0]
    assert tally.asked.tolist() == [3, 1, 0]
    value, low, high = PairedBootstrap(3).share(tally)
    assert (value, low, high) == (0.75, 0.0, 1.0)


def test_draws_repeat_with_their_seed() -> None:
    tally = Tally.of(table())
    assert PairedBootstrap(200, seed=1).share(tally) == PairedBootstrap(200, seed=1).share(tally)
    assert PairedBootstrap(200, seed=1).share(tally) != PairedBootstrap(200, seed=2).share(tally)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="199 questions, expected 200"):
        PairedBootstrap(200).share(Tally.of(table(199)))
    with pytest.raises(ValueError, match="at least 1"):
        PairedBootstrap(0)
    assert str(Estimate(0.641, 0.58, 0.7)) == "0.64 [0.58, 0.70]"
