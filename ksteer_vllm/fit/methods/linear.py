"""A linear probe: one logistic regression per label on the standardised residual stream. Family `linear`.

Its gradient with respect to x is weight_k / input_std whatever x is, so steering by it adds a fixed vector,
and steps beyond the first only lengthen it: the control that shows what the MLP's hidden layers bring.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ksteer_vllm.artifact import Artifact
from ksteer_vllm.fit.report import evaluate
from ksteer_vllm.fit.task import FitTask, SplitPlan, activation_scale
from ksteer_vllm.fit.train import standardisation

__all__ = ["LinearPlan", "fit"]


class LinearPlan(SplitPlan):
    """Options of `--method linear`."""

    l2: Annotated[float, Field(gt=0, description="weight of |w|^2 / 2 beside the summed log loss")] = 1.0
    max_iter: Annotated[int, Field(ge=1, description="of the L-BFGS solver")] = 1000


def fit(task: FitTask) -> Artifact:
    """Per label the w, b that minimise sum_i log loss(w z_i + b, y_i) + l2 |w|^2 / 2 over training tokens."""
    plan = task.plan(LinearPlan)
    train, test = task.train_and_test()
    mean, std = standardisation(train.x)
    weight, bias, iterations = _regressions((train.x - mean) / std, train.targets, plan)
    logits = (test.x - mean) / std @ weight.T + bias
    return task.artifact(
        "linear",
        {"weight": weight, "bias": bias, "input_mean": mean, "input_std": std},
        training={
            **task.training(plan),
            "iterations": dict(zip(task.labels, iterations, strict=True)),
        },
        metrics=evaluate(logits, test.targets, test.row, task.labels),
        scale=activation_scale(train.x),
    )


def _regressions(z: Tensor, targets: Tensor, plan: LinearPlan) -> tuple[Tensor, Tensor, list[int]]:
    """weight [K, d], bias [K] and the solver's iterations; z [N, d], targets [N, K]."""
    found = []
    for shown in targets.T:
        model = LogisticRegression(C=1 / plan.l2, max_iter=plan.max_iter)
        found.append(model.fit(z.numpy(), shown.numpy() > 0.5))
    weight = torch.from_numpy(np.concatenate([model.coef_ for model in found])).float()
    bias = torch.from_numpy(np.concatenate([model.intercept_ for model in found])).float()
    return weight, bias, [int(model.n_iter_[0]) for model in found]
