"""What the verifiable benchmark chooses, counts and writes, from replies made up here."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest

from benchmarks.verifiable.behaviours import BEHAVIOURS, PAIRS, SEVEN, asked, shows
from benchmarks.verifiable.choose import MAX_BROKEN, Tried, best
from benchmarks.verifiable.jobs import plain_jobs, prompted_jobs, read_for, steered_jobs
from benchmarks.verifiable.measure import PROMPTED, UNSTEERED
from benchmarks.verifiable.page import write_page
from benchmarks.verifiable.seen import Seen
from benchmarks.verifiable.ways import LAYER_SETS, WAYS, Setting
from ksteer_vllm import SteeringSpec
from ksteer_vllm.bench.jobs import Job, Reply

FRENCH = "Je pense que le chat est dans la maison et que vous avez une bonne idée pour nous."
ENGLISH = "I would open the window first, then look for the cat in the garden behind the house."
QUESTIONS = ("Where is the cat?", "What is for dinner?", "Why is it late?")


def reply(job: Job, text: str) -> Reply:
    return Reply(job=job, text=text, tokens=len(text.split()), finished=True, nll=1.0)


def tried(share: float, broken: float, strength: float) -> Tried:
    return Tried(Setting((12,), strength), share, broken, 1.0)


def test_the_rule_takes_the_most_shown_among_those_that_hardly_break() -> None:
    found = [tried(0.5, 0.0, 0.3), tried(0.6, MAX_BROKEN, 0.4), tried(0.9, MAX_BROKEN + 0.01, 0.5)]
    assert best(found) is found[1]


def test_of_equals_the_weaker_is_taken() -> None:
    assert best([tried(0.6, 0.0, 0.4), tried(0.6, 0.0, 0.3)]).setting.strength == 0.3


def test_where_all_break_the_one_that_breaks_fewest_is_taken() -> None:
    assert best([tried(0.9, 0.5, 0.4), tried(0.2, 0.2, 0.3)]).broken == 0.2


@pytest.mark.parametrize("name", WAYS)
def test_every_setting_is_a_spec(name: str) -> None:
    way = WAYS[name]
    for setting in way.settings:
        edit = SteeringSpec.parse(way.spec(("french", "story"), setting))
        assert edit.layers == setting.layers


def test_every_way_has_as_many_strengths_to_choose_from() -> None:
    assert {len(way.strengths) for way in WAYS.values()} == {5}
    assert {len(way.settings) for way in WAYS.values() if not way.single_layer} == {5 * len(LAYER_SETS)}


def test_one_step_and_eight_move_as_far() -> None:
    setting = Setting((12,), 0.8)
    one, eight = (WAYS[f"K-Steering, raw, {n}"].spec(("french",), setting) for n in ("1 step", "8 steps"))
    assert one["alpha"] * 1 == eight["alpha"] * 8 == 0.8


def test_pairs_do_not_contradict_themselves() -> None:
    assert set(SEVEN) < set(BEHAVIOURS)
    for one, other in PAIRS:
        assert BEHAVIOURS[one].kind != BEHAVIOURS[other].kind
    assert ("french", "spanish") not in PAIRS
    assert ("french", "numbered list") in PAIRS


def test_both_instructions_are_asked_for() -> None:
    (message,) = asked(("pirate", "numbered list"), "Where?")
    assert all(BEHAVIOURS[name].instruction in message.content for name in ("pirate", "numbered list"))


def test_a_broken_reply_shows_nothing() -> None:
    assert shows(("french",), FRENCH)
    assert not shows(("french",), " ".join([FRENCH] * 6))


def test_shares_are_counted_by_question() -> None:
    jobs = prompted_jobs([("french",), ("pirate",)], QUESTIONS)
    seen = Seen(
        [reply(job, text) for job, text in zip(jobs, cycle([FRENCH, ENGLISH]), strict=False)], QUESTIONS
    )
    french = seen.shown([("french",)])
    assert french.hits.tolist() == [1, 0, 1]
    assert french.asked.tolist() == [1, 1, 1]
    assert seen.share == pytest.approx(2 / 6)


def test_the_page_holds_every_way_and_its_sentences(tmp_path: Path) -> None:
    setting = Setting((12,), 0.4)
    names = ("K-Steering, raw, 8 steps", "K-Steering, variance, 8 steps", "CAA")

    def rows(targets: tuple[tuple[str, ...], ...]) -> dict[str, Seen]:
        plain = [reply(job, ENGLISH) for job in plain_jobs(QUESTIONS)]
        found = {UNSTEERED: Seen(read_for(plain, targets), QUESTIONS)}
        found[PROMPTED] = Seen([reply(j, ENGLISH) for j in prompted_jobs(targets, QUESTIONS)], QUESTIONS)
        for name in names:
            jobs = steered_jobs(WAYS[name], setting, targets, QUESTIONS)
            text = FRENCH if "variance" in name else ENGLISH
            found[name] = Seen([reply(job, text) for job in jobs], QUESTIONS)
        return found

    singles = rows(tuple((name,) for name in BEHAVIOURS))
    page = write_page(
        tmp_path,
        singles=singles,
        pairs=rows(PAIRS),
        effects={name: {"right": [1, 0, 1, 1], "kl": [0.1, 0.2]} for name in (UNSTEERED, *names)},
        tried={name: [Tried(setting, singles[name].share, 0.0, 1.0)] for name in names},
        about="made up",
    )
    text = page.read_text()
    for name in names:
        assert f"| {name} |" in text
    assert "K-Steering, variance, 8 steps 0.14 [0.14, 0.14]" in text  # French alone, of seven
    assert "What the metric adds, on the seven: K-Steering, variance, 8 steps minus K-Steering, raw" in text
    assert FRENCH in text
    assert len(list(tmp_path.glob("*.png"))) == 3
