"""Jobs, and the settings they come from."""

from __future__ import annotations

import pandas as pd

from ksteer_vllm.bench.variants import STANDARD
from ksteer_vllm.experiments.evaluation.displacement import Displacement
from ksteer_vllm.experiments.evaluation.settings import Setting, jobs_of, step_settings, unsteered_jobs
from ksteer_vllm.spec.spec import SteeringSpec

VARIANTS = {variant.name: variant for variant in STANDARD}
LABELS = ("a", "b", "c")
SOFTMIN = Setting(VARIANTS["K-Steering, 8 steps, softmin"], {1: 0.5, 2: 0.25}, layer=3)


def test_jobs_of_every_target_and_prompt_at_the_strength_of_the_size() -> None:
    targets = [("a",), ("a", "b"), ("a", "b", "c")]
    jobs = jobs_of([SOFTMIN], targets, ["Why?", "How?"], LABELS, "rest", multiplier=-0.5)
    assert len(jobs) == 4, "there is no strength for three labels"
    assert [job.seed for job in jobs] == [0, 1, 0, 1]
    spec = SteeringSpec.parse(jobs[2].spec)
    assert (list(spec.target), list(spec.avoid)) == (["a", "b"], ["c"])
    assert (spec.alpha, spec.loss, spec.layers) == (-0.125, "softmin", (3,))
    assert jobs[2].tags == {"variant": SOFTMIN.name, "target": ["a", "b"], "prompt": 0}
    assert not SteeringSpec.parse(jobs_of([SOFTMIN], targets, ["Why?"], LABELS, "none")[0].spec).avoid


def test_the_same_prompt_has_the_same_seed_steered_or_not() -> None:
    prompts = ["Why?", "How?"]
    assert [a.seed for a in unsteered_jobs(prompts)] == [0, 1]
    assert all(job.spec is None for job in unsteered_jobs(prompts))


def test_other_numbers_of_steps_at_equal_budget() -> None:
    one, sixteen = step_settings(Setting(VARIANTS["K-Steering, 8 steps"], {1: 2.0, 2: 1.0}), [1, 16])
    assert (one.name, one.alpha, one.variant.settings["num_steps"]) == ("1 step", {1: 16.0, 2: 8.0}, 1)
    assert (sixteen.name, sixteen.alpha) == ("16 steps", {1: 1.0, 2: 0.5})


def test_the_common_displacement_is_the_median_of_the_variants() -> None:
    shifts = {"K": (0.1, 0.3), "CAA": (0.4, 0.4), "ACE": (0.9, 0.9), "random": (9.0, 9.0)}
    rows = [{"variant": name, "size": 1, "shift": s} for name, pair in shifts.items() for s in pair]
    assert Displacement.common(pd.DataFrame(rows), without=["random"]) == {1: 0.4}
