"""The unsteered model on the prompts of an experiment: what every way to steer is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.progress import Progress

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.verdicts import Verdicts
from ksteer_vllm.data.rows import Prompt

if TYPE_CHECKING:
    from ksteer_vllm.bench.bench import Bench

__all__ = ["UNSTEERED_REPLIES", "rule_from", "unsteered_jobs", "unsteered_rule"]

UNSTEERED_REPLIES = 100
"""Least number of replies that set the coherence rule; fewer prompts are asked with several seeds each."""

_SEEDS_APART = 10_000


def unsteered_jobs(prompts: Sequence[Prompt], *, seed: int = 0) -> list[Job]:
    """Every prompt, the k-th with seed + k, and again with further seeds up to UNSTEERED_REPLIES."""
    turns = -(-UNSTEERED_REPLIES // len(prompts))
    return [
        Job(prompt, None, seed + k + turn * _SEEDS_APART, {"variant": "unsteered"})
        for turn in range(turns)
        for k, prompt in enumerate(prompts)
    ]


def rule_from(
    replies: Sequence[Reply], verdicts: Verdicts | None = None, *, budget: float = 0.9
) -> CoherenceRule:
    """The coherence rule that unsteered replies set; its share of coherent ones heeds the judge, too.

    Args:
        replies: Scored unsteered replies.
        verdicts: What the judge says of them.
        budget: The coherence budget, above 0 and at most 1.

    Raises:
        UsageError: If every reply is empty.
    """
    rule = CoherenceRule.of(replies, budget=budget)
    coherent = (verdicts or Verdicts()).coherent(rule, replies)
    return rule.model_copy(update={"unsteered": sum(coherent) / len(coherent)})


def unsteered_rule(
    bench: Bench,
    prompts: Sequence[Prompt],
    verdicts: Verdicts | None = None,
    *,
    budget: float = 0.9,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> CoherenceRule:
    """The coherence rule from unsteered replies to the prompts, generated here. Raises as `rule_from`."""
    replies = bench.run(
        unsteered_jobs(prompts, seed=seed), journal=journal, progress=progress, description="unsteered"
    )
    return rule_from(replies, verdicts, budget=budget)
