"""How well a probe reads text it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor

__all__ = ["evaluate", "report_table"]

_COLUMNS = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "positives")


def evaluate(logits: Tensor, targets: Tensor, row: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Metrics per label and their mean, over single tokens and over whole replies.

    logits, targets: [N, K]; row: [N] int64. A reply's logit is the mean over its tokens. A label is
    called present where its logit is above 0. The values are plain JSON types.
    """
    _, inverse, counts = torch.unique(row, return_inverse=True, return_counts=True)
    replies = torch.zeros(len(counts), logits.shape[1], dtype=torch.float64)
    replies.index_add_(0, inverse, logits.double())
    shown = torch.zeros_like(replies).index_add_(0, inverse, targets.double()) > 0
    return {
        "tokens": _scores(logits.numpy(), targets.numpy() > 0.5, labels),
        "replies": _scores((replies / counts[:, None]).numpy(), shown.numpy(), labels),
    }


def _scores(logits: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    per_label: dict[str, dict[str, float]] = {}
    for index, label in enumerate(labels):
        truth, score = targets[:, index], logits[:, index]
        called = score > 0
        per_label[label] = {
            "accuracy": float((called == truth).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(truth, called)),
            "auroc": float(roc_auc_score(truth, score)),
            "average_precision": float(average_precision_score(truth, score)),
            "positives": int(truth.sum()),
        }
    mean = {
        name: float(np.mean([scores[name] for scores in per_label.values()]))
        for name in _COLUMNS
        if name != "positives"
    }
    return {"count": len(targets), "mean": mean, "labels": per_label}


def report_table(metrics: Mapping[str, Any], unit: str = "tokens") -> Table:
    """A table of the held-out metrics in `probe.json`; unit: `tokens` or `replies`."""
    scores = metrics[unit]
    table = Table(title=f"held-out {unit} ({scores['count']})", title_justify="left")
    table.add_column("label")
    for name in _COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for label, values in scores["labels"].items():
        table.add_row(label, *(f"{values[name]:.3f}" for name in _COLUMNS[:-1]), str(values["positives"]))
    table.add_section()
    table.add_row("mean", *(f"{scores['mean'][name]:.3f}" for name in _COLUMNS[:-1]), "")
    return table
