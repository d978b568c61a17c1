"""Balanced accuracy with its interval: whether something tells a label from the rest better than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHANCE", "INTERVAL", "BalancedAccuracy", "at_chance"]

CHANCE = 0.5
INTERVAL = "balanced_accuracy_interval"
"""Beside `balanced_accuracy`, in a probe's metrics on held-out replies: [low, high] of a label."""
_LEVEL = 0.95
_DRAWS = 20_000


@dataclass(frozen=True)
class BalancedAccuracy:
    """Mean of the share of a label's replies that are found and of the share of all others that are not.

    low, high: the central 95 % of its posterior under uniform priors on both shares (Brodersen et al. 2010,
    "The balanced accuracy and its posterior distribution"), which is sound for a handful of replies, too;
    widened to hold the value itself.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, shown: NDArray[np.bool_], found: NDArray[np.bool_]) -> BalancedAccuracy:
        """Of N replies, N >= 2, some of which show the label and some do not.

        Args:
            shown: [N], whether a reply shows the label.
            found: [N], whether it was said to.
        """
        right, drawn = [], []
        rng = np.random.default_rng(0)
        for side in (shown, ~shown):
            hits, count = int((found == shown)[side].sum()), int(side.sum())
            right.append(hits / count)
            drawn.append(rng.beta(hits + 1, count - hits + 1, _DRAWS))
        value = sum(right) / 2
        low, high = np.quantile((drawn[0] + drawn[1]) / 2, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return cls(value, min(float(low), value), max(float(high), value))

    @property
    def above_chance(self) -> bool:
        """Whether the whole interval is."""
        return self.low > CHANCE

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def at_chance(metrics: Mapping[str, Any], labels: Sequence[str]) -> dict[str, BalancedAccuracy]:
    """The labels that a probe does not tell from the rest on held-out replies: label -> its figures.

    Args:
        metrics: A probe's; those of a probe fitted before intervals were kept say nothing.
        labels: The labels to look at.
    """
    held_out = metrics.get("replies", {}).get("labels", {})
    found = {
        label: BalancedAccuracy(held_out[label]["balanced_accuracy"], *held_out[label][INTERVAL])
        for label in labels
        if INTERVAL in held_out.get(label, {})
    }
    return {label: accuracy for label, accuracy in found.items() if not accuracy.above_chance}
