"""How well a probe or a direction reads text it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor

from ksteer_vllm.bench.chance import INTERVAL, BalancedAccuracy

__all__ = ["evaluate", "evaluate_ranking"]

_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda truth, score: float(((score > 0) == truth).mean()),
    "balanced_accuracy": lambda truth, score: balanced_accuracy_score(truth, score > 0),
    "auroc": roc_auc_score,
    "average_precision": average_precision_score,
}
_COLUMNS = tuple(_MEASURES)
_RANKING = ("auroc", "average_precision")


def evaluate(logits: Tensor, targets: Tensor, row: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Metrics per label and their mean, over single tokens and over whole replies.

    Args:
        logits: [N, K]; a reply's logit is the mean over its tokens, and a label counts as predicted where its
            logit is above 0.
        targets: [N, K] of 0 and 1.
        row: [N] int64, the reply each token belongs to.
        labels: K names.

    Returns:
        `tokens` and `replies`, each with metrics per label and their mean, as plain JSON; of replies, the
        interval of each label's balanced accuracy as well (`BalancedAccuracy`).
    """
    return _evaluate(logits, targets, row, labels, _COLUMNS)


def evaluate_ranking(scores: Tensor, targets: Tensor, row: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """The metrics that need no threshold, for scores such as the projections on a label's vector.

    Arguments as in `evaluate`. An AUROC of 0.5 is that of a score which says nothing about the label.
    """
    return _evaluate(scores, targets, row, labels, _RANKING)


def _evaluate(
    scores: Tensor, targets: Tensor, row: Tensor, labels: Sequence[str], columns: Sequence[str]
) -> dict[str, Any]:
    _, inverse, counts = torch.unique(row, return_inverse=True, return_counts=True)
    replies = torch.zeros(len(counts), scores.shape[1], dtype=torch.float64)
    replies.index_add_(0, inverse, scores.double())
    shown = torch.zeros_like(replies).index_add_(0, inverse, targets.double()) > 0
    means, truth = (replies / counts[:, None]).numpy(), shown.numpy()
    found = {
        "tokens": _scores(scores.numpy(), targets.numpy() > 0.5, labels, columns),
        "replies": _scores(means, truth, labels, columns),
    }
    if "balanced_accuracy" in columns:
        for index, label in enumerate(labels):
            interval = BalancedAccuracy.of(truth[:, index], means[:, index] > 0)
            found["replies"]["labels"][label][INTERVAL] = [interval.low, interval.high]
    return found


def _scores(
    scores: np.ndarray, targets: np.ndarray, labels: Sequence[str], columns: Sequence[str]
) -> dict[str, Any]:
    per_label: dict[str, dict[str, float]] = {}
    for index, label in enumerate(labels):
        truth, score = targets[:, index], scores[:, index]
        per_label[label] = {name: float(_MEASURES[name](truth, score)) for name in columns}
        per_label[label]["positives"] = int(truth.sum())
    mean = {name: float(np.mean([found[name] for found in per_label.values()])) for name in columns}
    return {"count": len(targets), "mean": mean, "labels": per_label}
