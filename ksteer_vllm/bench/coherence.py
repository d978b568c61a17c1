"""Whether a reply still reads like the model: one rule, set by unsteered replies, for every way to steer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.bench.jobs import SAMPLED, Reply
from ksteer_vllm.data.readers.words import distinct_share
from ksteer_vllm.errors import UsageError

__all__ = ["RULE", "CoherenceRule", "Measures", "measures", "repetition"]

WORDS = 3
"""Length of the word sequences whose repeats are counted."""

_PERPLEXITY_FACTOR = 1.5
_REPETITION_MARGIN = 0.2
_LENGTH_FACTOR = 3.0
_TAIL = 0.05

RULE = (
    "a reply is coherent if it is not empty; its perplexity under the unsteered model is at most "
    f"{_PERPLEXITY_FACTOR:g} times the 95th percentile of unsteered replies sampled at temperature "
    f"{SAMPLED:g}, or of the data's labelled replies, whichever is larger; its share of repeated sequences "
    f"of {WORDS} words is at most {_REPETITION_MARGIN:g} above that of unsteered replies; its length is at "
    f"least 1/{_LENGTH_FACTOR:g} of their 5th and at most {_LENGTH_FACTOR:g} times their 95th percentile; "
    "and it ends by itself, if at least 95 % of theirs do"
)


@dataclass(frozen=True)
class Measures:
    """perplexity: exp of the nll, NaN if the reply is empty or was not scored. repetition: 0 to 1.
    length: tokens."""

    perplexity: float
    repetition: float
    length: int


def measures(reply: Reply) -> Measures:
    """The numbers the rule looks at. No model is run."""
    perplexity = math.nan if reply.nll is None else math.exp(min(reply.nll, 700.0))
    return Measures(perplexity, repetition(reply.text), reply.tokens)


def repetition(text: str) -> float:
    """Share of the text's sequences of WORDS words that occurred earlier in it; 0 for a shorter text."""
    return 1 - distinct_share(text.lower().split(), WORDS)


def perplexity_limit(kinds: Sequence[Sequence[float]]) -> float:
    """The largest perplexity of a reply that can be read.

    Args:
        kinds: Perplexities of ordinary replies, kind by kind; the kind with the largest 95th percentile sets
            the limit. Kinds without replies do not count; without any the limit is infinite.
    """
    import numpy as np

    tails = [float(np.quantile(kind, 1 - _TAIL)) for kind in kinds if len(kind)]
    return _PERPLEXITY_FACTOR * max(tails, default=math.inf)


class CoherenceRule(BaseModel):
    """Thresholds, see RULE, and the coherence budget.

    Attributes:
        unsteered: Share of the unsteered replies that the rule finds coherent.
        budget: A strength is within the budget if the share of its replies that are coherent is at least
            budget x unsteered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_perplexity: float
    max_repetition: float
    min_length: float
    max_length: float
    may_be_cut_off: bool
    unsteered: Annotated[float, Field(ge=0, le=1)]
    budget: Annotated[float, Field(gt=0, le=1)] = 0.9

    @classmethod
    def of(
        cls,
        unsteered: Sequence[Reply],
        *,
        ordinary: Sequence[Sequence[float]] = (),
        budget: float = 0.9,
    ) -> CoherenceRule:
        """The rule from scored unsteered replies to the prompts that will be steered.

        Args:
            unsteered: The replies, sampled as those that will be judged.
            ordinary: The perplexities, under the unsteered model, of several kinds of ordinary text; the kind
                with the largest 95th percentile sets the limit. Empty: the unsteered replies alone.
            budget: The coherence budget, above 0 and at most 1.

        Raises:
            UsageError: If none of the replies has text and a score.
        """
        import numpy as np

        scored = [measures(reply) for reply in unsteered if reply.tokens and reply.nll is not None]
        if not scored:
            raise UsageError(
                f"prompts: all {len(unsteered)} unsteered replies are empty, so nothing says what a "
                "coherent one is; give prompts the model answers, in its own chat format if it has one"
            )
        kinds = [kind for kind in ordinary if len(kind)] or [[found.perplexity for found in scored]]
        repeated = np.quantile([found.repetition for found in scored], 1 - _TAIL)
        shortest, longest = np.quantile([found.length for found in scored], [_TAIL, 1 - _TAIL])
        cut_off = sum(not reply.finished for reply in unsteered) / len(unsteered)
        rule = cls(
            max_perplexity=perplexity_limit(kinds),
            max_repetition=float(repeated + _REPETITION_MARGIN),
            min_length=float(shortest / _LENGTH_FACTOR),
            max_length=float(longest * _LENGTH_FACTOR),
            may_be_cut_off=cut_off > _TAIL,
            unsteered=1.0,
            budget=budget,
        )
        return rule.model_copy(update={"unsteered": rule.share(unsteered)})

    @property
    def least(self) -> float:
        """The share of coherent replies a strength needs."""
        return self.budget * self.unsteered

    def coherent(self, reply: Reply) -> bool:
        """Whether the reply is coherent. Raises ValueError for one that was not scored."""
        if not reply.tokens:
            return False
        if reply.nll is None:
            raise ValueError("coherence needs a scored reply")
        found = measures(reply)
        return (
            found.perplexity <= self.max_perplexity
            and found.repetition <= self.max_repetition
            and self.min_length <= found.length <= self.max_length
            and (reply.finished or self.may_be_cut_off)
        )

    def share(self, replies: Sequence[Reply]) -> float:
        """Share of replies that are coherent; NaN if there are no replies."""
        return sum(map(self.coherent, replies)) / len(replies) if replies else math.nan

    def within_budget(self, share: float) -> bool:
        """Whether this share of coherent replies is enough."""
        return share >= self.least - 1e-9
