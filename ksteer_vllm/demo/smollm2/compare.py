"""K-Steering, averaged vectors and prompting side by side, on the questions that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.demo.smollm2.plan import CAA, PAIRS
from ksteer_vllm.experiments.knob.checks import readings
from ksteer_vllm.experiments.knob.plan import RECIPE, step_alpha
from ksteer_vllm.experiments.knob.strength import chosen, point_of
from ksteer_vllm.experiments.knob.tryout import KNOB, ReadReply, Tryout
from ksteer_vllm.experiments.knob.written import Asked, Written

__all__ = ["WAYS", "Comparison", "Count", "compare"]

WAYS: Final = ("unsteered", "prompted", "CAA", "K-Steering", "prompted + K-Steering")


@dataclass(frozen=True)
class Count:
    """How many of some replies show everything that was asked for, and can be read."""

    shown: int
    asked: int

    def __str__(self) -> str:
        return f"{self.shown}/{self.asked}"


@dataclass(frozen=True)
class Comparison:
    """What the demo shows.

    Attributes:
        strengths: Way -> behaviour -> the strength chosen for it on other questions.
        cells: Way -> behaviours, joined by ` + ` -> count.
        replies: Way -> the replies it is made of.
    """

    strengths: Mapping[str, Mapping[str, float]]
    cells: Mapping[str, Mapping[str, Count]]
    replies: Mapping[str, Sequence[ReadReply]]


def compare(
    tryout: Tryout, strengths: Mapping[str, float], calibration: Sequence[str], report: Sequence[str]
) -> Comparison:
    """Calibrate averaged vectors like the knob, and ask every way the same questions.

    Args:
        tryout: An engine with the knob's probe, and the knob's journal: what the knob asked is not run again.
        strengths: Behaviour -> the knob's strength.
        calibration: The questions strengths are chosen on.
        report: The questions to count on.
    """
    names = list(strengths)
    averaged = replace(tryout, recipe=CAA)
    points = [
        point_of(strength, averaged.run("steered", calibration, dict.fromkeys(names, strength)))
        for strength in sorted(tryout.plan.strengths)
    ]
    best = {**dict.fromkeys(names, min(tryout.plan.strengths)), **chosen(points, tryout.plan.max_broken)}
    plain = tryout.run("unsteered", report)
    replies = {
        "unsteered": plain,
        "prompted": tryout.run("prompted", report, strengths),
        "CAA": averaged.run("steered", report, best),
        "K-Steering": tryout.run("steered", report, strengths),
        "prompted + K-Steering": tryout.run("prompted and steered", report, strengths),
    }
    cells = {way: {name: _count(found, (name,)) for name in names} for way, found in replies.items()}
    pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
    both = {"CAA": (CAA, best), "K-Steering": (RECIPE, strengths)}
    for pair in pairs:
        key = " + ".join(pair)
        cells["unsteered"][key] = _count(plain, pair)
        for way in WAYS[1:]:
            recipe, alphas = both.get(way.removeprefix("prompted + "), (None, None))
            spec = None if recipe is None or alphas is None else _pair_spec(pair, recipe, alphas)
            cells[way][key] = _count(
                _ask_pair(tryout, way, pair, spec, report, prompted=way.startswith("prompted")), pair
            )
    return Comparison({"CAA": best, "K-Steering": dict(strengths)}, cells, replies)


def _pair_spec(
    pair: Sequence[str], recipe: Mapping[str, Any], strengths: Mapping[str, float]
) -> dict[str, Any]:
    """Both targets, at the mean of their strengths."""
    strength = sum(strengths[name] for name in pair) / len(pair)
    return {"probe": KNOB, "target": list(pair), **recipe, "alpha": step_alpha(strength, recipe)}


def _ask_pair(
    tryout: Tryout,
    way: str,
    pair: Sequence[str],
    spec: Mapping[str, Any] | None,
    questions: Sequence[str],
    *,
    prompted: bool,
) -> list[ReadReply]:
    jobs = []
    for number, question in enumerate(questions):
        prompt = tryout.form.plain(question)
        if prompted:
            both = " ".join(tryout.instructions[name][0] for name in pair)
            prompt = tryout.form.instructed(both, question)
        jobs.append(Job(prompt, spec, tryout.plan.seed + number, {"part": way, "pair": list(pair)}))
    replies = tryout.bench.run(
        jobs, journal=tryout.journal, progress=tryout.progress, description=f"{way}: {' + '.join(pair)}"
    )
    written = [
        Written(Asked(question), reply.text) for question, reply in zip(questions, replies, strict=True)
    ]
    return [
        ReadReply(one.asked, reply, shown, None if tryout.limit is None else tryout.limit.allows(reply))
        for one, reply, shown in zip(written, replies, readings(tryout.checks, written), strict=True)
    ]


def _count(replies: Sequence[ReadReply], names: Sequence[str]) -> Count:
    """Replies that were steered to the first of the names or to none in particular."""
    own = [reply for reply in replies if reply.asked.behaviour in (None, names[0])]
    return Count(sum(all(reply.success(name) for name in names) for reply in own), len(own))
