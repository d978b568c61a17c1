"""The cells of a calibration and the requests that fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ksteer_vllm.bench.combinations import Avoid, avoided, combinations
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.data.rows import Prompt
from ksteer_vllm.experiments.calibration.record import Point

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
    """One variant at one size and layer while it is being calibrated. points: by strength."""

    variant: Variant
    size: int
    layer: int | None
    targets: Targets
    grid: tuple[float, ...] = ()
    points: dict[float, Point] = field(default_factory=dict)

    @property
    def scores(self) -> Mapping[float, float]:
        return {alpha: point.score for alpha, point in self.points.items()}

    @property
    def coherent(self) -> Mapping[float, bool]:
        return {alpha: point.within_budget for alpha, point in self.points.items()}

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
