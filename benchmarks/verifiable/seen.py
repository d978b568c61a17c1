"""What readers see in replies: counts by behaviour and question, from which every figure is made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.verifiable.behaviours import shows
from benchmarks.verifiable.paired import Tally
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.data.readers import broken
from ksteer_vllm.data.readers.words import distinct_share

__all__ = ["Seen"]


@dataclass(frozen=True)
class Seen:
    """Replies of one way, each to a question, towards the behaviours in its tag `target`.

    Attributes:
        replies: In any order.
        questions: All there are, in an order that every way shares.
    """

    replies: Sequence[Reply]
    questions: Sequence[str]

    def shown(self, targets: Sequence[tuple[str, ...]] = ()) -> Tally:
        """Per question the replies that show their behaviours and are not broken.

        Args:
            targets: Only those towards these; empty: all.
        """
        return self._tally(lambda reply: shows(tuple(reply.job.tags["target"]), reply.text), targets)

    def broken(self) -> Tally:
        """Per question the replies that are broken."""
        return self._tally(lambda reply: broken(reply.text), ())

    @property
    def share(self) -> float:
        """Share of all replies that show their behaviours."""
        shown = self.shown()
        return float(shown.hits.sum() / shown.asked.sum())

    @property
    def broken_share(self) -> float:
        """Share of all replies that are broken."""
        found = self.broken()
        return float(found.hits.sum() / found.asked.sum())

    @property
    def nll(self) -> float:
        """Mean over replies of the negative log-likelihood per token under the unsteered model, in nats."""
        return statistics.fmean(reply.nll for reply in self.replies if reply.nll is not None)

    @property
    def perplexity(self) -> float:
        """exp of `nll`."""
        return math.exp(self.nll)

    @property
    def tokens(self) -> float:
        """Mean length of a reply in tokens."""
        return statistics.fmean(reply.tokens for reply in self.replies)

    @property
    def distinct(self) -> float:
        """Mean share of a reply's sequences of two words that are distinct."""
        return statistics.fmean(distinct_share(reply.text.lower().split(), 2) for reply in self.replies)

    def _tally(self, hit: Callable[[Reply], bool], targets: Sequence[tuple[str, ...]]) -> Tally:
        at = {question: index for index, question in enumerate(self.questions)}
        hits: NDArray[np.float64] = np.zeros(len(at))
        asked: NDArray[np.float64] = np.zeros(len(at))
        for reply in self.replies:
            if targets and tuple(reply.job.tags["target"]) not in targets:
                continue
            index = at[reply.job.tags["question"]]
            hits[index] += bool(hit(reply))
            asked[index] += 1
        return Tally(hits, asked)
