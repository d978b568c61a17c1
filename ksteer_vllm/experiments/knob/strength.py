"""The strengths of a knob: for every behaviour the one at which most replies show it and can be read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ksteer_vllm.data.readers import broken
from ksteer_vllm.experiments.knob.tryout import ReadReply

__all__ = ["StrengthPoint", "chosen", "point_of"]


@dataclass(frozen=True)
class StrengthPoint:
    """What was seen at one strength.

    Attributes:
        strength: As in `KnobPlan.strengths`.
        shown: Behaviour -> share of the replies steered to it that show it and can be read.
        broken: Behaviour -> share of the replies steered to it that are broken.
        unreadable: Share of replies that are not within the reading limit, the broken ones included.
    """

    strength: float
    shown: Mapping[str, float]
    broken: Mapping[str, float]
    unreadable: float

    @property
    def mean(self) -> float:
        """Share shown, mean over the behaviours."""
        return statistics.fmean(self.shown.values())

    @property
    def mean_broken(self) -> float:
        """Share broken, mean over the behaviours."""
        return statistics.fmean(self.broken.values())


def point_of(strength: float, outcomes: Sequence[ReadReply]) -> StrengthPoint:
    """The point of one strength; outcomes: of steered replies, at least one for every behaviour."""
    by_name: dict[str, list[bool]] = {}
    broken_by_name: dict[str, list[bool]] = {}
    for outcome in outcomes:
        name = str(outcome.asked.behaviour)
        by_name.setdefault(name, []).append(outcome.success(name))
        broken_by_name.setdefault(name, []).append(broken(outcome.reply.text))
    return StrengthPoint(
        strength,
        {name: statistics.fmean(map(float, found)) for name, found in by_name.items()},
        {name: statistics.fmean(map(float, found)) for name, found in broken_by_name.items()},
        statistics.fmean(float(outcome.readable is False) for outcome in outcomes),
    )


def chosen(points: Sequence[StrengthPoint], max_broken: float) -> dict[str, float]:
    """Behaviour -> its strength: of those with few enough broken replies the one that shows it most, the
    weakest of equals.

    One strength for all would be too much for one behaviour and too little for another. A behaviour of which
    every strength breaks too many replies is left out.

    Args:
        points: What was seen at each strength, on questions that nothing is reported on.
        max_broken: Largest share of a behaviour's replies that may be broken.
    """
    names = list(points[0].shown) if points else []
    found = {}
    for name in names:
        allowed = [point for point in points if point.broken[name] <= max_broken]
        if allowed:
            found[name] = max(allowed, key=lambda point: (point.shown[name], -point.strength)).strength
    return found
