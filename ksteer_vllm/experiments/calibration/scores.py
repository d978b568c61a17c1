"""From the replies at one strength to its point."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.verdicts import Verdicts
from ksteer_vllm.experiments.calibration.plan import Metric
from ksteer_vllm.experiments.calibration.record import Point

__all__ = ["Scores"]


@dataclass
class Scores:
    """Reads replies by a rule and, if there is one, a judge."""

    rule: CoherenceRule
    verdicts: Verdicts
    metric: Metric

    def point(self, alpha: float, replies: Sequence[Reply]) -> Point:
        """Means over replies whose tag `target` names their labels."""
        coherent = self.verdicts.coherent(self.rule, replies)
        shown: list[float] = []
        for reply, fine in zip(replies, coherent, strict=True):
            verdict = self.verdicts.of(reply) if fine else None
            if verdict is None or verdict.judged:
                shown.append(float(verdict is not None and verdict.shows(reply.job.tags["target"])))
        on_target = statistics.fmean(shown) if self.verdicts.judge is not None and shown else None
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


def _weakest(reply: Reply) -> float:
    """The smallest probability of a target label under the evaluation probe."""
    assert reply.propensity is not None
    lowest = min(reply.propensity[label] for label in reply.job.tags["target"])
    return 1 / (1 + math.exp(-max(lowest, -700.0)))
