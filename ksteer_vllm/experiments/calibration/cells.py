"""The cells of a calibration and the requests that fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ksteer_vllm.bench.combinations import Avoid, avoided, combinations
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.data.rows import Prompt
from ksteer_vllm.experiments.calibration.bisect import bracket, largest_coherent
from ksteer_vllm.experiments.calibration.choose import best_strength
from ksteer_vllm.experiments.calibration.plan import Metric
from ksteer_vllm.experiments.calibration.record import CalibratedCell, Gain, Point
from ksteer_vllm.experiments.calibration.scores import Scored, gain

__all__ = ["OpenCell", "targets_of"]


@dataclass(frozen=True)
class Targets:
    """The combinations of one size, each with the prompts (by index) it is tried on."""

    combinations: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]


def targets_of(labels: Sequence[str], size: int, prompts: int) -> Targets:
    """Together about len(labels) x prompts requests, so that every size costs the same.

    The combinations take turns on the prompts; where there are more of them than requests, evenly spread ones
    are taken. Raises UsageError for a size there are not enough labels for.
    """
    every, most = combinations(labels, [size]), len(labels) * prompts
    if len(every) > most:
        every = [every[k * len(every) // most] for k in range(most)]
    each = min(prompts, max(1, round(most / len(every))))
    return Targets(
        tuple(
            (target, tuple((number * each + k) % prompts for k in range(each)))
            for number, target in enumerate(every)
        )
    )


@dataclass
class OpenCell:
    """One variant at one size and layer while it is being calibrated. points, scored: by strength."""

    variant: Variant
    size: int
    layer: int | None
    targets: Targets
    grid: tuple[float, ...] = ()
    points: dict[float, Point] = field(default_factory=dict)
    scored: dict[float, list[Scored]] = field(default_factory=dict)

    @property
    def scores(self) -> Mapping[float, float]:
        return {alpha: point.score for alpha, point in self.points.items()}

    @property
    def coherent(self) -> Mapping[float, bool]:
        return {alpha: point.within_budget for alpha, point in self.points.items()}

    def calibrated(self, plain: Sequence[Scored], metric: Metric) -> CalibratedCell:
        """The strengths that are chosen, and what every coherent one gains over unsteered replies.

        plain: Unsteered replies to the prompts, seen from the cell's targets.
        """
        coherent = [alpha for alpha, fine in self.coherent.items() if fine]

        def gained(scored: Sequence[Scored]) -> Gain | None:
            return gain(scored, plain, metric, strengths=len(coherent))

        gains = {alpha: gained(self.scored[alpha]) for alpha in coherent}
        best = best_strength(self.scores, self.coherent)
        of_best = self.scored.get(best, []) if best is not None and self.size == 1 else []
        labels = dict.fromkeys(one.target[0] for one in of_best)
        by_label = {
            label: found
            for label in labels
            if (found := gained([one for one in of_best if one.target == (label,)])) is not None
        }
        return CalibratedCell(
            variant=self.variant.name,
            size=self.size,
            layer=self.layer,
            points=tuple(
                point.model_copy(update={"gain": gains.get(alpha)})
                for alpha, point in sorted(self.points.items())
            ),
            best=best,
            largest_coherent=largest_coherent(self.coherent),
            bracketed=bracket(self.coherent) is not None,
            by_label=by_label,
        )

    def jobs(
        self, alpha: float, prompts: Sequence[Prompt], labels: Sequence[str], avoid: Avoid, seed: int
    ) -> list[Job]:
        """Every combination at one strength. The same prompt has the same seed everywhere."""
        found = []
        for target, chosen in self.targets.combinations:
            spec = self.variant.spec(target, avoided(labels, target, avoid), alpha, layer=self.layer)
            found += [self._job(prompts[k], spec, seed + k, target, alpha) for k in chosen]
        return found

    def _job(
        self, prompt: Prompt, spec: Mapping[str, object], seed: int, target: Sequence[str], alpha: float
    ) -> Job:
        tags = {"variant": self.variant.name, "layer": self.layer, "target": list(target), "alpha": alpha}
        return Job(prompt, spec, seed, tags)
