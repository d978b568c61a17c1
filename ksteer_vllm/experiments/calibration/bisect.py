"""Which strength to try next: the largest coherent one is found by bisection on a log scale."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ksteer_vllm.experiments.calibration.choose import best

__all__ = ["PRECISION", "bracket", "largest_coherent", "next_strengths"]

PRECISION = 1.05
"""Strengths whose ratio is smaller than this count as the same."""

_EXTENSION = 2
"""Octaves a grid is extended by at a time."""

_MAX_EXTENSION = 4
"""Octaves a grid is extended by in all, at each end."""


def largest_coherent(coherent: Mapping[float, bool]) -> float | None:
    """The largest strength that is coherent; None if none is. coherent: strength -> whether it is."""
    return max((alpha for alpha, fine in coherent.items() if fine), default=None)


def bracket(coherent: Mapping[float, bool]) -> tuple[float, float] | None:
    """The largest coherent strength and the next larger one, which is not; None if there is no such pair."""
    low = largest_coherent(coherent)
    above = [alpha for alpha in coherent if low is not None and alpha > low]
    return (low, min(above)) if low is not None and above else None


def next_strengths(
    scores: Mapping[float, float], coherent: Mapping[float, bool], grid: tuple[float, float]
) -> list[float]:
    """The strengths to try after those in `scores` and `coherent`, which hold the same ones.

    Past the upper end while the strength there is still coherent; past the lower end while no strength is
    coherent, or the best coherent one lies there; else the geometric middle of the bracket, until it is
    narrower than PRECISION.

    Args:
        scores: Strength -> score.
        coherent: Strength -> whether its replies are coherent enough.
        grid: The lowest and highest strength of the first round.
    """
    alphas = sorted(coherent)
    lowest, highest = alphas[0], alphas[-1]
    found: list[float] = []
    fine = {alpha: scores[alpha] for alpha in alphas if coherent[alpha]}
    at_lower_end = not fine or (best(fine) == lowest and len(set(fine.values())) > 1)
    if at_lower_end and lowest > grid[0] * 2.0**-_MAX_EXTENSION * 1.01:
        found += [lowest * 2.0**-octave for octave in range(1, _EXTENSION + 1)]
    if coherent[highest] and highest < grid[1] * 2.0**_MAX_EXTENSION / 1.01:
        found += [highest * 2.0**octave for octave in range(1, _EXTENSION + 1)]
    pair = bracket(coherent)
    if pair is not None and pair[1] / pair[0] > PRECISION:
        found.append(math.sqrt(pair[0] * pair[1]))
    return sorted(found)
