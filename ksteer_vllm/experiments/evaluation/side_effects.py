"""What else steering changes: the next-token distribution where the text is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NextTokens", "kl_divergence", "mean_kl"]

_SMALLEST = 1e-9
"""Least probability of an event: rounding can make a difference of sums 0 or negative."""

_LOWEST = -100.0
"""Least log-probability, in place of a -inf that float32 rounds to."""


@dataclass(frozen=True)
class NextTokens:
    """The next-token distribution at one position: the whole vocabulary, or the likeliest tokens of it.

    tokens: [k] ascending, distinct. logprobs: [k], natural logarithms.
    """

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float64]

    @classmethod
    def of(cls, tokens: Sequence[int], logprobs: Sequence[float]) -> NextTokens:
        """From tokens in any order; one that is named twice counts once."""
        ids, first = np.unique(np.asarray(tokens, np.int64), return_index=True)
        return cls(ids, np.maximum(np.asarray(logprobs, np.float64)[first], _LOWEST))


def kl_divergence(steered: NextTokens, unsteered: NextTokens) -> float:
    """KL(steered || unsteered) of one position, in nats.

    Exact if both hold the whole vocabulary. Otherwise a lower bound: merging events never raises the
    divergence, and a token outside the unsteered list is no likelier there than the last one on it. Events
    are each token both list; those only the steered one lists; all others.
    """
    _, ours, theirs = np.intersect1d(
        steered.tokens, unsteered.tokens, assume_unique=True, return_indices=True
    )
    p, q = np.exp(steered.logprobs), np.exp(unsteered.logprobs)
    kl = float(p[ours] @ (steered.logprobs[ours] - unsteered.logprobs[theirs]))
    left = 1 - q[theirs].sum()
    others = 1 - p.sum()
    new = p.sum() - p[ours].sum()
    rest = _term(new + others, left)
    if len(ours) < len(p):
        unlisted = min((len(p) - len(ours)) * q.min(), 1 - q.sum())
        rest = max(rest, _term(new, unlisted) + _term(others, left))
    return max(kl + rest, 0.0)


def mean_kl(steered: Sequence[NextTokens], unsteered: Sequence[NextTokens]) -> float:
    """The mean over positions. Raises ValueError if there are none, or not equally many."""
    if not steered or len(steered) != len(unsteered):
        raise ValueError(f"{len(steered)} and {len(unsteered)} positions")
    return float(np.mean([kl_divergence(*pair) for pair in zip(steered, unsteered, strict=True)]))


def _term(p: float, q: float) -> float:
    return float(p * np.log(p / max(q, _SMALLEST))) if p > _SMALLEST else 0.0
