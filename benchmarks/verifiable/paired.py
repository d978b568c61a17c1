"""Intervals of shares and of their differences, over the questions: a paired bootstrap.

Replies to one question are alike, and every method answers the same questions. So what is drawn with
replacement is whole questions, and all methods are seen on the same draws: a difference is taken within each
draw, where what is hard about a question is hard for both (Efron and Tibshirani 1993, chapter 8).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Estimate", "PairedBootstrap", "Tally"]

DRAWS = 10_000


class Estimate(NamedTuple):
    """A figure, and the ends of its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`.64 [.58, .70]`."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Tally(NamedTuple):
    """Per question how much was counted, and over how many replies.

    Attributes:
        hits: [questions], such as the replies that show a behaviour, or the sum of a measure.
        asked: [questions], how many replies there are. A question may have none.
    """

    hits: NDArray[np.float64]
    asked: NDArray[np.float64]

    @classmethod
    def of(cls, values: ArrayLike) -> Tally:
        """From one value per question and reply.

        Args:
            values: [questions] or [questions, replies]; NaN where there is no reply.
        """
        table = np.asarray(values, np.float64)
        table = table.reshape(len(table), -1)
        return cls(np.nansum(table, 1), (~np.isnan(table)).sum(1).astype(np.float64))


class PairedBootstrap:
    """Draws of questions, the same for everything that is measured on them.

    Args:
        questions: How many there are.
        draws: How many times they are drawn.
        seed: Of the draws.
    """

    def __init__(self, questions: int, draws: int = DRAWS, seed: int = 0) -> None:
        if questions < 1:
            raise ValueError(f"questions: expected at least 1, got {questions}")
        even = np.full(questions, 1 / questions)
        self._times = np.random.default_rng(seed).multinomial(questions, even, draws).astype(np.float64)

    def share(self, tally: Tally) -> Estimate:
        """Hits per reply."""
        return _estimate(_share(tally), self._shares(tally))

    def difference(self, tally: Tally, other: Tally) -> Estimate:
        """The share of the first minus that of the second."""
        return _estimate(_share(tally) - _share(other), self._shares(tally) - self._shares(other))

    def _shares(self, tally: Tally) -> NDArray[np.float64]:
        """[draws]."""
        if len(tally.hits) != self._times.shape[1]:
            raise ValueError(f"{len(tally.hits)} questions, expected {self._times.shape[1]}")
        with np.errstate(invalid="ignore"):  # a draw of nothing but questions without replies is left out
            return np.asarray((self._times @ tally.hits) / (self._times @ tally.asked))


def _share(tally: Tally) -> float:
    return float(tally.hits.sum() / tally.asked.sum()) if tally.asked.any() else float("nan")


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if not np.isnan(value) else (value, value)
    return Estimate(value, float(low), float(high))
