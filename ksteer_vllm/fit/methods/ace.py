"""Affine concept editing (ACE, arXiv 2411.09003): a direction and its origin per label. Family `ace`.

r_k = mean of x where label k is shown - mean where it is not; a0_k = the mean where it is not. Requests get
x' = x + r^((a0 . r^) + alpha |r| - r^ . x) with r^ = r / |r|: the coordinate of x along r^ becomes that of a
typical token without the label (alpha 0) or with it (alpha 1), whatever it was before.
"""

from __future__ import annotations

from ksteer_vllm.fit.heldout import evaluate_ranking
from ksteer_vllm.fit.plans import SplitPlan
from ksteer_vllm.fit.statistics import activation_scale, check_directions, label_means
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["fit"]


def fit(task: FitTask) -> Probe:
    """Means over the reply positions of the training rows; held-out metrics rank by r_k . x."""
    plan = task.plan(SplitPlan)
    train, test = task.train_and_test()
    positive, negative = label_means(train.stream, train.targets)
    directions = (positive - negative).float()
    check_directions(directions, task.labels)
    return task.probe(
        "ace",
        {"directions": directions, "negatives_mean": negative},
        training=task.training(plan),
        metrics=evaluate_ranking(test.along(directions), test.targets, test.row, task.labels),
        scale=activation_scale(train.stream),
    )
