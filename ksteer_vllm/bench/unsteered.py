"""The unsteered model on the prompts of an experiment: what every way to steer is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress import Progress

from ksteer_vllm.bench.coherence import CoherenceRule, measures
from ksteer_vllm.bench.jobs import SAMPLED, Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.ordinary import perplexities
from ksteer_vllm.bench.runner import ReadingRunner
from ksteer_vllm.bench.verdicts import Verdicts
from ksteer_vllm.data.rows import LabelledRow, Prompt

__all__ = ["UNSTEERED_REPLIES", "Unsteered", "unsteered", "unsteered_jobs", "unsteered_rule"]

UNSTEERED_REPLIES = 100
"""Least number of replies that set the coherence rule; fewer prompts are asked with several seeds each."""

_SEEDS_APART = 10_000


@dataclass(frozen=True)
class Unsteered:
    """Unsteered replies, the k-th of which answers the k-th prompt with seed + k, and the rule they set."""

    replies: Sequence[Reply]
    rule: CoherenceRule


def unsteered_jobs(
    prompts: Sequence[Prompt], *, seed: int = 0, temperature: float | None = None
) -> list[Job]:
    """Every prompt, and again with further seeds up to UNSTEERED_REPLIES.

    Args:
        prompts: At least one.
        seed: The k-th prompt has seed + k.
        temperature: Of the sampling; None: that of the bench.
    """
    turns = -(-UNSTEERED_REPLIES // len(prompts))
    return [
        Job(
            prompt,
            None,
            seed + k + turn * _SEEDS_APART,
            {"variant": "unsteered"},
            temperature=temperature,
        )
        for turn in range(turns)
        for k, prompt in enumerate(prompts)
    ]


def unsteered(
    bench: ReadingRunner,
    prompts: Sequence[Prompt],
    verdicts: Verdicts | None = None,
    *,
    labelled: Sequence[LabelledRow] = (),
    budget: float = 0.9,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Unsteered:
    """Unsteered replies to the prompts, generated here, and the coherence rule.

    Its limit on perplexity comes from replies sampled at temperature SAMPLED, even in a run that is greedy,
    and from the labelled replies; its share of coherent replies heeds the judge, too.

    Args:
        bench: The engine.
        prompts: The prompts that will be steered.
        verdicts: What the judge says of the replies.
        labelled: Labelled text of the data: a reply in French is not to be incoherent for being French.
        budget: The coherence budget, above 0 and at most 1.
        seed: Seed of the sampling.
        journal: Keeps every reply as it comes in.
        progress: Where to show how many replies are done.

    Raises:
        UsageError: If every reply is empty.
    """

    def replies_at(temperature: float | None, description: str) -> list[Reply]:
        jobs = unsteered_jobs(prompts, seed=seed, temperature=temperature)
        return bench.run(jobs, journal=journal, progress=progress, description=description)

    replies = replies_at(None, "unsteered")
    sampled = replies if bench.temperature == SAMPLED else replies_at(SAMPLED, "unsteered, sampled")
    ordinary = [
        [found for reply in sampled if not math.isnan(found := measures(reply).perplexity)],
        perplexities(bench, labelled, journal=journal),
    ]
    rule = CoherenceRule.of(replies, ordinary=ordinary, budget=budget)
    coherent = (verdicts or Verdicts()).coherent(rule, replies)
    return Unsteered(replies, rule.model_copy(update={"unsteered": sum(coherent) / len(coherent)}))


def unsteered_rule(
    bench: ReadingRunner,
    prompts: Sequence[Prompt],
    verdicts: Verdicts | None = None,
    *,
    budget: float = 0.9,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> CoherenceRule:
    """The coherence rule alone, see `unsteered`, whose arguments and errors it has."""
    return unsteered(
        bench, prompts, verdicts, budget=budget, seed=seed, journal=journal, progress=progress
    ).rule
