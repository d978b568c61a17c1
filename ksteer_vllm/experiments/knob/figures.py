"""The figures of a knob on questions it was not chosen on: shares with intervals, and what steering adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ksteer_vllm.bench.intervals import interval_of_mean
from ksteer_vllm.experiments.knob.tryout import ROWS, ReadReply, Row

__all__ = ["Added", "BehaviourFigures", "Share", "figures_of"]

_Z: Final = 1.959964
"""Of a 95 % interval."""


@dataclass(frozen=True)
class Share:
    """How many of some replies show a behaviour and can be read."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which is sound for few replies and for shares near 0 and 1."""
        n, p = self.count, self.value
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits}/{self.count} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Added:
    """Share of steered replies minus that of the unsteered ones to the same questions.

    low, high: 95 % bootstrap interval over questions.
    """

    value: float
    low: float
    high: float

    @property
    def steers(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class BehaviourFigures:
    """The figures of one behaviour. shares: by row of the table."""

    shares: Mapping[Row, Share]
    gain: Added

    def as_json(self) -> dict[str, Any]:
        return {
            "shares": {
                row: {"hits": share.hits, "count": share.count, "interval": share.interval}
                for row, share in self.shares.items()
            },
            "gain": {"value": self.gain.value, "low": self.gain.low, "high": self.gain.high},
        }


def figures_of(
    outcomes: Mapping[Row, Sequence[ReadReply]], names: Sequence[str]
) -> dict[str, BehaviourFigures]:
    """The figures of every behaviour.

    Args:
        outcomes: Row -> outcomes; the unsteered ones are of no behaviour, and read for each.
        names: The behaviours.
    """
    return {name: _figures(outcomes, name) for name in names}


def _figures(outcomes: Mapping[Row, Sequence[ReadReply]], name: str) -> BehaviourFigures:
    found: dict[Row, dict[str, bool]] = {}
    for row in ROWS:
        own = [one for one in outcomes.get(row, ()) if one.asked.behaviour in (None, name)]
        if own:
            found[row] = {one.asked.question: one.success(name) for one in own}
    before, after = found["unsteered"], found["steered"]
    questions = [question for question in before if question in after]
    differences = np.array([float(after[q]) - float(before[q]) for q in questions])
    low, high = interval_of_mean(differences, questions)
    shares = {row: Share(sum(hits.values()), len(hits)) for row, hits in found.items()}
    return BehaviourFigures(shares, Added(float(differences.mean()), low, high))
