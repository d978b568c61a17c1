"""The control for CAA: random vectors with CAA's norms and angles. Family `vectors`.

Every combination of labels moves x exactly as far as CAA's would, see `matched_random`.
"""

from __future__ import annotations

from ksteer_kernels.reference.vectors import matched_random
from ksteer_vllm.fit.heldout import evaluate_ranking
from ksteer_vllm.fit.plans import SplitPlan
from ksteer_vllm.fit.statistics import activation_scale, check_directions, label_vectors
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["fit"]


def fit(task: FitTask) -> Probe:
    """CAA's vectors, turned at random; the seed is the task's."""
    plan = task.plan(SplitPlan)
    train, test = task.train_and_test()
    mean_differences = label_vectors(train.stream, train.targets)
    check_directions(mean_differences, task.labels)
    vectors = matched_random(mean_differences, task.seed).float()
    return task.probe(
        "vectors",
        {"vectors": vectors},
        training=task.training(plan),
        metrics=evaluate_ranking(test.along(vectors), test.targets, test.row, task.labels),
        scale=activation_scale(train.stream),
    )
