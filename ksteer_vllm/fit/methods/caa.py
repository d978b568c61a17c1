"""Contrastive activation addition (CAA, arXiv 2312.06681): one vector per label. Family `vectors`.

V_k = mean of x where label k is shown - mean of x where it is not, over the reply positions of the training
rows. With contrast pairs as data, these are the means over the pairs' positive and negative replies.
"""

from __future__ import annotations

from ksteer_vllm.fit.heldout import evaluate_ranking
from ksteer_vllm.fit.plans import SplitPlan
from ksteer_vllm.fit.statistics import activation_scale, check_directions, label_vectors
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["fit"]


def fit(task: FitTask) -> Probe:
    """Label vectors of the training rows; held-out metrics rank by the projection x . V_k."""
    plan = task.plan(SplitPlan)
    train, test = task.train_and_test()
    vectors = label_vectors(train.stream, train.targets)
    check_directions(vectors, task.labels)
    return task.probe(
        "vectors",
        {"vectors": vectors},
        training=task.training(plan),
        metrics=evaluate_ranking(test.along(vectors), test.targets, test.row, task.labels),
        scale=activation_scale(train.stream),
    )
