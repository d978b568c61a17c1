"""From the replies at one strength to its point."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ksteer_vllm.evaluate.judges import Judge, Verdict
from ksteer_vllm.study.asks import Reply
from ksteer_vllm.study.coherence import CoherenceRule
from ksteer_vllm.sweep.calibration import Point

__all__ = ["Metric", "Scores"]

Metric = Literal["judge", "propensity"]


@dataclass
class Scores:
    """Reads replies by a rule and, if there is one, a judge.

    The same text for the same prompt is judged once, and a reply the rule finds incoherent not at all: it
    cannot be on target.
    """

    rule: CoherenceRule
    judge: Judge | None
    metric: Metric
    _verdicts: dict[tuple[object, ...], Verdict] = field(default_factory=dict)

    def unsteered_share(self, replies: Sequence[Reply]) -> float:
        """Share of unsteered replies that are coherent by the rule and by the judge's word."""
        return statistics.fmean(map(bool, self._coherent(replies)))

    def point(self, alpha: float, replies: Sequence[Reply]) -> Point:
        """Means over replies whose tag `target` names their labels."""
        coherent = self._coherent(replies)
        shown: list[float] = []
        for reply, fine in zip(replies, coherent, strict=True):
            verdict = self._verdicts.get(_text_of(reply)) if fine else None
            if verdict is None or verdict.judged:
                shown.append(float(verdict is not None and verdict.shows(reply.ask.tags["target"])))
        on_target = statistics.fmean(shown) if self.judge is not None and shown else None
        read = [_weakest(reply) for reply in replies if reply.propensity is not None]
        propensity = statistics.fmean(read) if read else None
        score = on_target if self.metric == "judge" else propensity
        nll = [reply.nll for reply in replies if reply.nll is not None]
        share = statistics.fmean(map(float, coherent))
        return Point(
            alpha=alpha,
            replies=len(replies),
            score=score if score is not None else 0.0,
            coherent=share,
            within_budget=self.rule.within_budget(share),
            on_target=on_target,
            propensity=propensity,
            perplexity=math.exp(min(statistics.median(nll), 700.0)) if nll else None,
        )

    def _coherent(self, replies: Sequence[Reply]) -> list[bool]:
        by_rule = [self.rule.coherent(reply) for reply in replies]
        if self.judge is None:
            return by_rule
        new = {
            _text_of(reply): reply
            for reply, fine in zip(replies, by_rule, strict=True)
            if fine and _text_of(reply) not in self._verdicts
        }
        self._verdicts |= dict(zip(new, self.judge.judge(list(new.values())), strict=True))
        return [
            fine and self._verdicts[_text_of(reply)].coherent is not False
            for reply, fine in zip(replies, by_rule, strict=True)
        ]


def _text_of(reply: Reply) -> tuple[object, ...]:
    return reply.ask.prompt, reply.text, reply.finished


def _weakest(reply: Reply) -> float:
    """The smallest probability of a target label under the evaluation probe."""
    assert reply.propensity is not None
    lowest = min(reply.propensity[label] for label in reply.ask.tags["target"])
    return 1 / (1 + math.exp(-max(lowest, -700.0)))
