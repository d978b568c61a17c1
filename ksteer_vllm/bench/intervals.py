"""Bootstrap intervals of means whose values come in groups: replies to one prompt are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "interval_of_mean"]

LEVEL = 0.95
_RESAMPLES = 5000


def interval_of_mean(
    values: NDArray[np.float64], groups: Sequence[Any], *, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap percentiles of the mean, resampling whole groups.

    Args:
        values: [n], such as the paired differences of two ways to steer.
        groups: [n], such as the prompt each value belongs to.
        level: Share of the resamples between the ends.
        seed: Seed of the resampling.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(names), size=(_RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
