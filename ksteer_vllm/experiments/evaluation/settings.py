"""An evaluation's requests: variants at a strength per size, towards combinations, on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ksteer_vllm.bench.combinations import Avoid, avoided
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.data.rows import Prompt
from ksteer_vllm.experiments.evaluation.metrics import UNSTEERED

__all__ = ["Setting", "jobs_of", "step_settings", "unsteered_jobs"]


@dataclass(frozen=True)
class Setting:
    """A variant and its strength for every size of combinations. layer: None for the probe's own."""

    variant: Variant
    alpha: Mapping[int, float]
    layer: int | None = None

    @property
    def name(self) -> str:
        return self.variant.name

    def at(self, alpha: Mapping[int, float]) -> Setting:
        return replace(self, alpha=alpha)

    def spec(
        self, target: Sequence[str], labels: Sequence[str], avoid: Avoid, multiplier: float = 1.0
    ) -> dict[str, object]:
        alpha = multiplier * self.alpha[len(target)]
        return self.variant.spec(target, avoided(labels, target, avoid), alpha, layer=self.layer)


def unsteered_jobs(prompts: Sequence[Prompt]) -> list[Job]:
    """One per prompt; a prompt's index is its seed, here and in every other job."""
    return [
        Job(prompt, seed=index, tags={"variant": UNSTEERED, "prompt": index})
        for index, prompt in enumerate(prompts)
    ]


def jobs_of(
    settings: Sequence[Setting],
    targets: Sequence[Sequence[str]],
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    avoid: Avoid,
    *,
    multiplier: float = 1.0,
) -> list[Job]:
    """Every setting that has a strength for a target's size, towards every target, on every prompt."""
    return [
        Job(
            prompt,
            setting.spec(target, labels, avoid, multiplier),
            seed=index,
            tags={"variant": setting.name, "target": list(target), "prompt": index},
        )
        for setting in settings
        for target in targets
        if len(target) in setting.alpha
        for index, prompt in enumerate(prompts)
    ]


def step_settings(setting: Setting, counts: Sequence[int]) -> list[Setting]:
    """A K-Steering setting with other numbers of steps, at equal budget: alpha times steps stays the same."""
    steps = setting.variant.settings.get("num_steps", 8)
    found = []
    for count in counts:
        name = f"{count} step{'s' if count > 1 else ''}"
        variant = setting.variant.model_copy(
            update={"name": name, "settings": {**setting.variant.settings, "num_steps": count}}
        )
        alpha = {size: value * steps / count for size, value in setting.alpha.items()}
        found.append(replace(setting, variant=variant, alpha=alpha))
    return found
