"""Which strength to take, from how well each of several did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["TOLERANCE", "best", "best_strength", "middle", "plateau"]

TOLERANCE = 0.02
"""Scores this near to the best count as equally good."""


def best(scores: Mapping[float, float]) -> float:
    """The strength with the highest score, the smallest of equals. scores: strength -> score, not empty."""
    return max(scores, key=lambda alpha: (scores[alpha], -alpha))


def plateau(scores: Mapping[float, float], tolerance: float = TOLERANCE) -> list[float]:
    """The strengths, ascending and unbroken, around the best that score nearly as high."""
    alphas, top = sorted(scores), best(scores)
    first = last = alphas.index(top)
    while first > 0 and scores[alphas[first - 1]] >= scores[top] - tolerance:
        first -= 1
    while last + 1 < len(alphas) and scores[alphas[last + 1]] >= scores[top] - tolerance:
        last += 1
    return alphas[first : last + 1]


def middle(alphas: Sequence[float]) -> float:
    """The one nearest to the geometric middle of the range; alphas: positive, ascending."""
    centre = math.sqrt(alphas[0] * alphas[-1])
    return min(alphas, key=lambda alpha: abs(math.log(alpha / centre)))


def best_strength(scores: Mapping[float, float], coherent: Mapping[float, bool]) -> float | None:
    """The middle of the plateau among coherent strengths; None if none is coherent.

    scores, coherent: by strength; a plateau ends at a strength that is not coherent.
    """
    within = {alpha: score for alpha, score in scores.items() if coherent[alpha]}
    if not within:
        return None
    masked = {alpha: score if coherent[alpha] else -math.inf for alpha, score in scores.items()}
    return middle(plateau(masked))
