"""A bench whose replies are a known function of the strength."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.judges import Verdict

SHIFT_PER_ALPHA = 0.125
LOW = dict.fromkeys(("a", "b", "c"), -2.0)


class FakeBench:
    """Coherent up to `limits[probe]`; shows its targets from half of that on. Shift = alpha / 8."""

    temperature, max_tokens = 1.0, 40
    llm: Any = None

    def __init__(self, limits: Mapping[str, float]) -> None:
        self.limits = limits
        self.calls: list[list[Job]] = []

    def key(self, job: Job) -> str:
        return job.key

    def run(self, jobs: Sequence[Job], **_: Any) -> list[Reply]:
        self.calls.append(list(jobs))
        return [self._reply(job) for job in jobs]

    def _reply(self, job: Job) -> Reply:
        if job.spec is None:
            return Reply(job, f"plain {job.seed}", 20, True, 1.0 + 0.001 * (job.seed % 7), LOW)
        limit, alpha = self.limits[job.spec["probe"]], job.spec["alpha"]
        target = job.tags.get("target", ())
        shown = [label for label in target if alpha >= limit / 2]
        return Reply(
            job,
            f"{alpha} {' '.join(shown)}",
            20,
            True,
            1.0 if alpha <= limit else 5.0,
            {label: 2.0 if label in shown else -2.0 for label in ("a", "b", "c")},
            SHIFT_PER_ALPHA * alpha if job.spec.get("report") else None,
        )


class FakeJudge:
    """A label is shown if the reply names it."""

    name = "fake"

    def __init__(self, *, unsure: float = 0.0) -> None:
        self.read: list[Reply] = []
        self.unsure = unsure
        self._rng = random.Random(0)

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        self.read += replies
        return [
            Verdict(frozenset(reply.text.split()), judged=self._rng.random() >= self.unsure)
            for reply in replies
        ]
