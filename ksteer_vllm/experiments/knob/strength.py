"""The strength of a knob: the one at which most replies show what they are steered to and can be read."""

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
        broken: Share of replies that are broken, of all behaviours together.
        unreadable: Share of replies that are not within the reading limit, the broken ones included.
    """

    strength: float
    shown: Mapping[str, float]
    broken: float
    unreadable: float

    @property
    def mean(self) -> float:
        """Mean over the behaviours."""
        return statistics.fmean(self.shown.values())


def point_of(strength: float, outcomes: Sequence[ReadReply]) -> StrengthPoint:
    """The point of one strength; outcomes: of steered replies, at least one for every behaviour."""
    by_name: dict[str, list[bool]] = {}
    for outcome in outcomes:
        name = str(outcome.asked.behaviour)
        by_name.setdefault(name, []).append(outcome.success(name))
    return StrengthPoint(
        strength,
        {name: statistics.fmean(map(float, found)) for name, found in by_name.items()},
        statistics.fmean(float(broken(outcome.reply.text)) for outcome in outcomes),
        statistics.fmean(float(outcome.readable is False) for outcome in outcomes),
    )


def chosen(points: Sequence[StrengthPoint], max_broken: float) -> StrengthPoint | None:
    """The point with the highest mean among those with few enough broken replies, the weakest of equals.

    Returns:
        The point; None if every strength breaks too many replies.
    """
    allowed = [point for point in points if point.broken <= max_broken]
    return max(allowed, key=lambda point: (point.mean, -point.strength), default=None)
