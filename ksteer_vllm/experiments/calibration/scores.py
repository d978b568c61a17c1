"""From the replies at one strength to its point, and to what it gains over unsteered replies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.intervals import LEVEL, interval_of_mean
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.verdicts import Verdicts
from ksteer_vllm.experiments.calibration.plan import Metric
from ksteer_vllm.experiments.calibration.record import Gain, Point

__all__ = ["Scored", "Scores", "gain"]

Target = tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """One reply, seen from a target.

    Attributes:
        target: The labels that are asked for.
        seed: Of its sampling: replies to one prompt share it.
        coherent: Whether it is.
        on_target: Whether it shows the target and is coherent; None if the judge gave no usable answer.
        propensity: The weakest target's probability under the evaluation probe; None without one.
        nll: See `Reply`.
    """

    target: Target
    seed: int
    coherent: bool
    on_target: bool | None
    propensity: float | None
    nll: float | None

    def value(self, metric: Metric) -> float | None:
        if metric == "propensity":
            return self.propensity
        return None if self.on_target is None else float(self.on_target)


@dataclass
class Scores:
    """Reads replies by a rule and, if there is one, a judge."""

    rule: CoherenceRule
    verdicts: Verdicts
    metric: Metric

    def scored(self, replies: Sequence[Reply], targets: Sequence[Target]) -> list[Scored]:
        """Every reply, each seen from a target of its own."""
        found = []
        coherent = self.verdicts.coherent(self.rule, replies)
        for reply, target, fine in zip(replies, targets, coherent, strict=True):
            verdict = self.verdicts.of(reply) if fine else None
            judged = verdict is None or verdict.judged
            shows = verdict is not None and verdict.shows(target)
            found.append(
                Scored(
                    target,
                    reply.job.seed,
                    fine,
                    shows if judged else None,
                    _weakest(reply, target),
                    reply.nll,
                )
            )
        return found

    def point(self, alpha: float, scored: Sequence[Scored]) -> Point:
        """Means over the replies at one strength."""
        shown = [float(one.on_target) for one in scored if one.on_target is not None]
        on_target = statistics.fmean(shown) if self.verdicts.judge is not None and shown else None
        read = [one.propensity for one in scored if one.propensity is not None]
        propensity = statistics.fmean(read) if read else None
        score = on_target if self.metric == "judge" else propensity
        nll = [one.nll for one in scored if one.nll is not None]
        share = statistics.fmean(float(one.coherent) for one in scored)
        return Point(
            alpha=alpha,
            replies=len(scored),
            score=score if score is not None else 0.0,
            coherent=share,
            within_budget=self.rule.within_budget(share),
            on_target=on_target,
            propensity=propensity,
            perplexity=math.exp(min(statistics.median(nll), 700.0)) if nll else None,
        )


def gain(
    steered: Sequence[Scored], unsteered: Sequence[Scored], metric: Metric, *, strengths: int = 1
) -> Gain | None:
    """What a strength gains over unsteered replies to the same prompts, seen from the same targets.

    Args:
        steered: The replies at the strength.
        unsteered: Those they are paired with, by target and seed.
        metric: What counts.
        strengths: How many the strength was chosen from.

    Returns:
        None if no pair can be compared.
    """
    plain: Mapping[tuple[Target, int], float | None] = {
        (one.target, one.seed): one.value(metric) for one in unsteered
    }
    differences, prompts = [], []
    for one in steered:
        after, before = one.value(metric), plain.get((one.target, one.seed))
        if after is not None and before is not None:
            differences.append(after - before)
            prompts.append(one.seed)
    if not differences:
        return None
    low, high = interval_of_mean(np.array(differences), prompts, level=1 - (1 - LEVEL) / max(1, strengths))
    return Gain(mean=statistics.fmean(differences), low=low, high=high)


def _weakest(reply: Reply, target: Target) -> float | None:
    """The smallest probability of a target label under the evaluation probe; None if it did not read it."""
    if reply.propensity is None or not reply.propensity.keys() >= set(target):
        return None
    lowest = min(reply.propensity[label] for label in target)
    return 1 / (1 + math.exp(-max(lowest, -700.0)))
