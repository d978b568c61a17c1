"""A linear probe: one logistic regression per label on the standardised residual stream. Family `linear`.

Its gradient with respect to x is weight_k / input_std whatever x is, so steering by it adds a fixed vector,
and steps beyond the first only lengthen it: the control that shows what the MLP's hidden layers bring.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ksteer_vllm.fit.heldout import evaluate
from ksteer_vllm.fit.logistic import logistic_regression
from ksteer_vllm.fit.metric import metric_statistics
from ksteer_vllm.fit.plans import SplitPlan
from ksteer_vllm.fit.statistics import activation_scale, standardisation
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["LinearPlan", "fit", "regressions"]


class LinearPlan(SplitPlan):
    """Options of `--method linear`."""

    l2: Annotated[float, Field(gt=0, description="Weight of |w|^2 / 2 beside the summed log loss.")] = 1.0
    max_iter: Annotated[int, Field(ge=1, description="Maximum number of L-BFGS iterations.")] = 1000


def fit(task: FitTask) -> Probe:
    """Per label the w, b that minimise sum_i log loss(w z_i + b, y_i) + l2 |w|^2 / 2 over training tokens."""
    plan = task.plan(LinearPlan)
    train, test = task.train_and_test()
    mean, std = standardisation(train.stream)
    weight, bias, iterations = regressions(train.stream.standardised(mean, std), train.targets, plan)
    lengths = metric_statistics(train.stream, mean, std, rows=len(task.parts["train"]))
    logits = test.stream.map(lambda x: (x - mean) / std @ weight.T + bias)
    return task.probe(
        "linear",
        {"weight": weight, "bias": bias, "input_mean": mean, "input_std": std, **lengths.tensors(weight)},
        training={**task.training(plan), "iterations": iterations, "metric": dict(lengths.training)},
        metrics=evaluate(logits, test.targets, test.row, task.labels),
        scale=activation_scale(train.stream),
        metric_scale=lengths.at(task.layer),
    )


def regressions(z: Tensor | Stream, targets: Tensor, plan: LinearPlan) -> tuple[Tensor, Tensor, int]:
    """weight [K, d], bias [K] and the solver's iterations; z [N, d], targets [N, K]."""
    return logistic_regression(z, targets > 0.5, l2=plan.l2, max_iter=plan.max_iter)
