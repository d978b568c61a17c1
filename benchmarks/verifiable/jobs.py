"""The requests of the benchmark: the same questions, seeds and sampling for every way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.verifiable.behaviours import asked, plain
from benchmarks.verifiable.ways import Setting, Way
from ksteer_vllm.bench.jobs import Job, Reply

__all__ = ["Targets", "plain_jobs", "prompted_jobs", "read_for", "steered_jobs"]

Targets = Sequence[tuple[str, ...]]


def steered_jobs(
    way: Way, setting: Setting, targets: Targets, questions: Sequence[str], *, prompted: bool = False
) -> list[Job]:
    """Every question towards every target; prompted: with the instructions in the prompt as well."""
    return [
        Job(
            asked(target, question) if prompted else plain(question),
            way.spec(target, setting),
            number,
            _tags(target, question),
        )
        for target in targets
        for number, question in enumerate(questions)
    ]


def prompted_jobs(targets: Targets, questions: Sequence[str]) -> list[Job]:
    """Every question with every target's instructions, unsteered."""
    return [
        Job(asked(target, question), None, number, _tags(target, question))
        for target in targets
        for number, question in enumerate(questions)
    ]


def plain_jobs(questions: Sequence[str]) -> list[Job]:
    """Every question alone."""
    return [
        Job(plain(question), None, number, {"question": question})
        for number, question in enumerate(questions)
    ]


def read_for(replies: Sequence[Reply], targets: Targets) -> list[Reply]:
    """Replies to plain questions, once for every target they are read for."""
    return [
        replace(reply, job=replace(reply.job, tags=_tags(target, reply.job.tags["question"])))
        for target in targets
        for reply in replies
    ]


def _tags(target: tuple[str, ...], question: str) -> dict[str, Any]:
    return {"target": list(target), "question": question}
