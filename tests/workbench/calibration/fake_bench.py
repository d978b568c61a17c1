"""A bench whose replies are a known function of the strength."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.bench.jobs import Ask, Reply
from ksteer_vllm.bench.judges import Verdict

SHIFT_PER_ALPHA = 0.125


class FakeBench:
    """Coherent up to `limits[probe]`; shows its targets from half of that on. Shift = alpha / 8."""

    temperature, max_tokens = 1.0, 40

    def __init__(self, limits: Mapping[str, float]) -> None:
        self.limits = limits
        self.calls: list[list[Ask]] = []

    def run(self, asks: Sequence[Ask], **_: Any) -> list[Reply]:
        self.calls.append(list(asks))
        return [self._reply(ask) for ask in asks]

    def _reply(self, ask: Ask) -> Reply:
        if ask.spec is None:
            return Reply(ask, f"plain {ask.seed}", 20, True, 1.0 + 0.001 * (ask.seed % 7), {"a": -2, "b": -2})
        limit, alpha = self.limits[ask.spec["probe"]], ask.spec["alpha"]
        target = ask.tags.get("target", ())
        shown = [label for label in target if alpha >= limit / 2]
        return Reply(
            ask,
            f"{alpha} {' '.join(shown)}",
            20,
            True,
            1.0 if alpha <= limit else 5.0,
            {label: 2.0 if label in shown else -2.0 for label in ("a", "b", "c")},
            SHIFT_PER_ALPHA * alpha if ask.spec.get("report") else None,
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
