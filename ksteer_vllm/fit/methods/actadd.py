"""Activation addition (ActAdd, arXiv 2308.10248): vectors from the first positions. Family `vectors`.

The texts are the rows' replies, each run alone as a prompt. Where the paper adds one vector per position,

    h_p = x_p(text with the label) - x_p(text without),   p the first n positions,

an edit here has one vector per request and window of positions, so V_k is the mean of the n differences, and
requests steer prompt positions [0, n) by default. Leading special tokens, whose difference is 0, are left
out of both. A single contrast pair is enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ksteer_vllm.data.positions import FirstPositions
from ksteer_vllm.data.split import MIN_ROWS
from ksteer_vllm.errors import DataError, listing
from ksteer_vllm.fit.heldout import evaluate_ranking
from ksteer_vllm.fit.plans import ActAddPlan
from ksteer_vllm.fit.statistics import activation_scale, check_directions, label_means
from ksteer_vllm.fit.task import FitTask, LabelledActivations
from ksteer_vllm.probes.probe import Probe

__all__ = ["contrast_vectors", "fit"]


def fit(task: FitTask) -> Probe:
    """Mean differences at the first n positions of the training rows' texts.

    Where a label has fewer than MIN_ROWS rows on a side, every row is used and there are no metrics.
    """
    plan = task.plan(ActAddPlan)
    sides = torch.stack([task.targets.sum(0), (1 - task.targets).sum(0)])
    if not (sides > 0).all():
        alone = [label for label, count in zip(task.labels, sides.amin(0), strict=True) if not count]
        raise DataError(f"labels: no contrast for {listing(alone)}: need rows with it and rows without")
    split = bool((sides >= MIN_ROWS).all())
    window = FirstPositions(plan.first)
    if split:
        train, test = task.train_and_test(window)
        training = task.training(plan, window)
    else:
        train = test = task.activations(window)
        training = {**plan.model_dump(mode="json"), **task.provenance(window), "split": "every row was used"}
    vectors = contrast_vectors(train, task.labels)
    check_directions(vectors, task.labels)
    start = int(train.position.min())
    return task.probe(
        "vectors",
        {"vectors": vectors},
        training=training,
        metrics=evaluate_ranking(test.along(vectors), test.targets, test.row, task.labels) if split else None,
        scale=activation_scale(train.stream),
        default_where={"prompt": [start, start + plan.first]},
    )


def contrast_vectors(tokens: LabelledActivations, labels: tuple[str, ...]) -> Tensor:
    """[K, d] float32: the mean over positions of mean(with the label) - mean(without), position by position.

    Raises DataError for a label that has no text on one side as long as the positions asked for.
    """
    differences = []
    for position in tokens.position.unique().tolist():
        here = tokens.position == position
        targets = tokens.targets[here]
        for label, shown in zip(labels, targets.T, strict=True):
            if not 0 < shown.sum() < len(shown):
                first = int(tokens.position.min())
                raise DataError(
                    f"first: the texts with or without {label!r} have {position - first} tokens at most; "
                    f"choose {position - first} positions or fewer"
                )
        positive, negative = label_means(tokens.stream.select(here), targets)
        differences.append(positive - negative)
    return torch.stack(differences).mean(0).float()
