"""Strengths and figures of a knob: what is chosen, and when it is said that nothing steers."""

from __future__ import annotations

import pytest

from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.knob.figures import Share, figures_of
from ksteer_vllm.experiments.knob.plan import KnobPlan, plan_of
from ksteer_vllm.experiments.knob.questions import QuestionParts
from ksteer_vllm.experiments.knob.serving import serving_lines
from ksteer_vllm.experiments.knob.strength import StrengthPoint, chosen, point_of
from ksteer_vllm.experiments.knob.tryout import ReadingLimit, ReadReply
from ksteer_vllm.experiments.knob.written import Asked

TEXT = "A reply that can be read by anyone, and says what it says."


def outcome(number: int, name: str | None, *shown: str, text: str = TEXT, readable: bool = True) -> ReadReply:
    reply = Reply(Job(f"q{number}"), text, tokens=9, finished=True, nll=1.0)
    return ReadReply(Asked(f"q{number}", name), reply, frozenset(shown), readable)


def steered(hits: int, count: int = 30) -> list[ReadReply]:
    return [outcome(k, "kind", *(["kind"] if k < hits else [])) for k in range(count)]


def test_the_best_strength_is_the_one_that_shows_most_without_breaking_replies() -> None:
    def point(strength: float, share: float, broken: float) -> StrengthPoint:
        return StrengthPoint(strength, {"kind": share}, {"kind": broken}, broken)

    points = [point(0.2, 0.3, 0.0), point(0.4, 0.6, 0.04), point(0.5, 0.6, 0.05), point(0.8, 0.9, 0.3)]
    assert chosen(points, 0.05) == {"kind": 0.4}
    assert chosen(points[3:], 0.05) == {}


def test_every_behaviour_has_a_strength_of_its_own() -> None:
    points = [
        StrengthPoint(0.2, {"french": 0.8, "pirate": 0.1}, {"french": 0.0, "pirate": 0.0}, 0.0),
        StrengthPoint(0.4, {"french": 0.3, "pirate": 0.5}, {"french": 0.4, "pirate": 0.05}, 0.4),
    ]
    assert chosen(points, 0.05) == {"french": 0.2, "pirate": 0.4}


def test_a_point_counts_replies_that_show_it_and_can_be_read() -> None:
    found = point_of(
        0.5,
        [
            outcome(0, "kind", "kind"),
            outcome(1, "kind", "kind", readable=False),
            outcome(2, "kind", text="so so so so so so so so", readable=False),
            outcome(3, "loud", "kind"),
        ],
    )
    assert found.shown == {"kind": pytest.approx(1 / 3), "loud": 0.0}
    assert found.broken == {"kind": pytest.approx(1 / 3), "loud": 0.0}
    assert found.unreadable == 0.5
    assert found.mean == pytest.approx(1 / 6)


@pytest.mark.parametrize(("before", "after", "steers"), [(0, 20, True), (0, 1, False), (10, 12, False)])
def test_steering_is_claimed_only_where_the_interval_is_above_0(
    before: int, after: int, steers: bool
) -> None:
    plain = [outcome(k, None, *(["kind"] if 30 - before <= k else [])) for k in range(30)]
    found = figures_of({"unsteered": plain, "steered": steered(after)}, ["kind"])["kind"]
    assert found.gain.value == pytest.approx((after - before) / 30)
    assert found.gain.low <= found.gain.value <= found.gain.high
    assert found.gain.steers is steers
    assert str(found.shares["steered"]).startswith(f"{after}/30 [")


def test_an_interval_of_few_replies_is_wide_and_stays_within_0_and_1() -> None:
    low, high = Share(20, 20).interval
    assert high == 1.0
    assert low == pytest.approx(0.839, abs=0.001)  # Wilson's: n / (n + z^2)


def test_the_reading_limit_is_of_the_kind_that_reads_hardest() -> None:
    limit = ReadingLimit.of([2.0] * 20, [8.0] * 20)
    assert limit.perplexity == 12.0
    assert limit.allows(Reply(Job("q"), TEXT, 9, True, nll=2.4))
    assert not limit.allows(Reply(Job("q"), TEXT, 9, True, nll=2.6))
    assert not limit.allows(Reply(Job("q"), "so so so so so so so", 9, True, nll=0.1))
    assert not limit.allows(Reply(Job("q"), "", 0, True))


def test_no_question_is_in_two_parts() -> None:
    questions = [f"q{k}" for k in range(100)]
    parts = QuestionParts.of(questions, KnobPlan(held_out=20, fit_questions=50))
    every = [*parts.fit, *parts.calibration, *parts.report]
    assert (len(parts.fit), len(parts.calibration), len(parts.report)) == (50, 20, 20)
    assert len(set(every)) == 90
    with pytest.raises(UsageError, match="questions: 69; 70 are needed"):
        QuestionParts.of(questions[:69], KnobPlan(held_out=20))


def test_plans() -> None:
    assert KnobPlan().layers_of(30) == (9, 12, 15)
    assert KnobPlan().layers_of(2) == (0, 1)
    assert KnobPlan(layers=(4, 2)).layers_of(30) == (2, 4)
    plan = plan_of({"held_out": 25, "samples": 3}, {"samples": 4}, quick=True)
    assert (plan.held_out, plan.samples, plan.reply_tokens) == (25, 4, 32)
    with pytest.raises(UsageError, match="options: unknown 'sample'; allowed: fit_questions"):
        plan_of({"sample": 3})
    with pytest.raises(UsageError, match=r"options\.held_out: .* greater than or equal to 20 \(got 3\)"):
        plan_of({"held_out": 3})


def test_the_line_to_serve_it_can_be_typed(tmp_path: object) -> None:
    from pathlib import Path

    serve, ask = serving_lines("models/my model", Path("out/knob"), "like a pirate", {"max_model_len": 512})
    assert serve == "vllm serve 'models/my model' --ksteer-probe knob=out/knob --max-model-len 512"
    assert '"ksteer": {"probe": "knob", "target": ["like a pirate"]}' in ask
    serve, ask = serving_lines("model", Path("out/probe"), "french", {}, "voices")
    assert serve == "vllm serve model --ksteer-probe voices=out/probe"
    assert '"ksteer": {"probe": "voices", "target": ["french"]}' in ask
