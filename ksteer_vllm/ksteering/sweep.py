"""Several strengths on the same prompts: what each makes of them, and which still read like the model."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.coherence import CoherenceRule, measures
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.data.rows import Prompt

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AlphaSweep", "drawn", "sweep"]

SWEPT = 20
"""Number of prompts in a sweep if none are given."""


@dataclass(frozen=True)
class AlphaSweep:
    """What `KSteering.sweep_alpha` found.

    Attributes:
        replies: A row for each strength and prompt (alpha 0: unsteered): text, its perplexity under the
            unsteered model, its share of repetition, its length in tokens and whether it is coherent.
        largest_coherent: The largest strength up to which all strengths tried are within the coherence
            budget; None: not even the smallest is.
        rule: The thresholds.
    """

    replies: pd.DataFrame
    largest_coherent: float | None
    rule: CoherenceRule

    @property
    def by_strength(self) -> pd.DataFrame:
        """alpha, share of coherent replies, mean perplexity and length."""
        named = {"coherent": "mean", "perplexity": "mean", "repetition": "mean", "tokens": "mean"}
        return self.replies.groupby("alpha", as_index=False).agg(named)


def drawn(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """At most SWEPT of the prompts."""
    return random.Random(seed).sample(prompts, min(SWEPT, len(prompts)))


def sweep(
    run: Callable[[Sequence[Job]], list[Reply]],
    prompts: Sequence[Prompt],
    specs: Mapping[float, Mapping[str, Any]],
    budget: float,
) -> AlphaSweep:
    """Every strength on every prompt in one call of `run`, unsteered first. specs: strength -> spec."""
    import pandas as pd

    jobs = [Job(prompt, None, index) for index, prompt in enumerate(prompts)]
    for alpha, spec in specs.items():
        jobs += [Job(prompt, spec, index, {"alpha": alpha}) for index, prompt in enumerate(prompts)]
    replies = run(jobs)
    rule = CoherenceRule.of(replies[: len(prompts)], budget=budget)
    rows, largest, within = [], None, True
    for number, alpha in enumerate((0.0, *specs)):
        own = replies[number * len(prompts) : (number + 1) * len(prompts)]
        for reply in own:
            found = measures(reply)
            rows.append(
                {
                    "alpha": alpha,
                    "prompt": reply.job.question,
                    "text": reply.text,
                    "perplexity": found.perplexity,
                    "repetition": found.repetition,
                    "tokens": found.length,
                    "coherent": rule.coherent(reply),
                }
            )
        within = within and rule.within_budget(rule.share(own))
        if number and within:
            largest = alpha
    return AlphaSweep(pd.DataFrame(rows), largest, rule)
