"""The rule that unsteered replies set, with and without a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.bench.unsteered import UNSTEERED_REPLIES, unsteered_rule
from ksteer_vllm.bench.verdicts import Verdicts


class Bench:
    """Every reply is as likely as any other; its text is its seed."""

    jobs: Sequence[Job] = ()
    temperature, max_tokens = 1.0, 40
    llm: Any = None

    def key(self, job: Job) -> str:
        return job.key

    def run(self, jobs: Sequence[Job], **_: Any) -> list[Reply]:
        self.jobs = jobs
        return [Reply(job, f"reply {job.seed}", 10, True, 1.0) for job in jobs]


class Strict:
    """Every fourth reply reads badly."""

    name = "strict"

    def __init__(self) -> None:
        self.read = 0

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        self.read += len(replies)
        return [Verdict(frozenset(), reply.job.seed % 4 != 0) for reply in replies]


def rule(bench: Bench, prompts: Sequence[str], judge: Strict | None = None) -> CoherenceRule:
    return unsteered_rule(bench, prompts, Verdicts(judge), budget=0.8)


@pytest.mark.parametrize(("prompts", "replies"), [(12, 108), (100, 100), (130, 130)])
def test_few_prompts_are_asked_with_several_seeds(prompts: int, replies: int) -> None:
    bench = Bench()
    rule(bench, [f"prompt {k}" for k in range(prompts)])
    assert len(bench.jobs) == replies >= UNSTEERED_REPLIES
    assert len({job.seed for job in bench.jobs}) == replies
    assert {job.spec for job in bench.jobs} == {None}


def test_the_judges_word_counts_in_the_share() -> None:
    prompts = [f"prompt {k}" for k in range(100)]
    judge = Strict()
    assert rule(Bench(), prompts).unsteered == 1.0
    found = rule(Bench(), prompts, judge)
    assert (found.unsteered, found.budget) == (0.75, 0.8)
    assert judge.read == 100


def test_a_text_is_judged_once() -> None:
    judge = Strict()
    verdicts = Verdicts(judge)
    reply = Reply(Job("q", seed=3), "text", 10, True, 1.0)
    rule = CoherenceRule.of([reply])
    assert verdicts.coherent(rule, [reply, reply]) == verdicts.coherent(rule, [reply] * 2) == [True, True]
    assert judge.read == 1
    assert verdicts.of(reply) == Verdict(frozenset(), True)
