"""Strengths at which variants move the stream equally far, to compare them at equal displacement."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

__all__ = ["TOLERANCE", "closest", "match_strengths", "next_strength"]

Key = TypeVar("Key", bound=Hashable)

Attempt = tuple[float, float]
"""A strength and the displacement it gave."""

TOLERANCE = 0.03
"""Relative deviation within which a displacement counts as the one wanted."""

_LARGEST_FACTOR = 8.0


def next_strength(points: Sequence[Attempt], wanted: float) -> float | None:
    """The strength to try next: between two that enclose the wanted displacement, on log scales, else in
    proportion, by a factor of 8 at most. None if a point is within the tolerance, or nothing is wanted.
    """
    if not points or wanted <= 0 or abs(closest(points, wanted)[1] / wanted - 1) <= TOLERANCE:
        return None
    points = sorted(points)
    for (low, less), (high, more) in pairwise(points):
        if (less - wanted) * (more - wanted) < 0:
            share = 0.5
            if less > 0 and more > 0:
                share = math.log(wanted / less) / math.log(more / less)
            share = min(max(share, 0.05), 0.95)
            return low * (high / low) ** share
    low, less = points[0]
    high, more = points[-1]
    if less > wanted:
        return low * max(wanted / less, 1 / _LARGEST_FACTOR)
    return high * min(wanted / more if more > 0 else _LARGEST_FACTOR, _LARGEST_FACTOR)


def closest(points: Sequence[Attempt], wanted: float) -> Attempt:
    """The point whose displacement is nearest to the wanted one."""
    return min(points, key=lambda point: abs(point[1] - wanted))


def match_strengths(
    start: Mapping[Key, float],
    wanted: Mapping[Key, float],
    displacement: Callable[[Mapping[Key, float]], Mapping[Key, float]],
    rounds: int = 5,
) -> dict[Key, Attempt]:
    """Per key, the strength that comes closest to its wanted displacement, and the displacement it gives.

    displacement: strengths -> displacements, all of a round at once. A method that cannot move as far (or as
    little) ends at what comes closest.
    """
    points: dict[Key, list[Attempt]] = {key: [] for key in start}
    trying = dict(start)
    for _ in range(rounds):
        for key, moved in displacement(trying).items():
            points[key].append((trying[key], moved))
        trying = {
            key: alpha
            for key, found in points.items()
            if (alpha := next_strength(found, wanted[key])) is not None
        }
        if not trying:
            break
    return {key: closest(found, wanted[key]) for key, found in points.items()}
