"""Linear probes: the gradient is the same at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm.probes.probe import Probe
from testbed.families import SCALE, random_covariance, with_metrics
from tests.engine.methods.steering import (
    MIXES,
    assert_close,
    assert_moved,
    probe,
    steered,
    vectors,
    weights_of,
)


def logits(it: Probe, x: Tensor) -> Tensor:
    t = it.at(1)
    return ((x.double() - t["input_mean"]) / t["input_std"]) @ t["weight"].T + t["bias"]


@pytest.mark.parametrize(("num_steps", "decay"), [(1, 1.0), (6, 1.0), (6, 0.5), (3, 0.0)])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_it_is_gradient_descent_on_the_probe_as_trained(
    mix: dict[str, Any], num_steps: int, decay: float
) -> None:
    """By autograd in float64, on the standardised residual stream."""
    it, x = probe("linear"), vectors()
    expected = x.double()
    for step in range(num_steps):
        expected = expected.detach().requires_grad_()
        (-(logits(it, expected) @ weights_of(mix)).sum()).backward()
        expected = expected - 0.4 * decay**step * expected.grad
    fields = {**mix, "alpha": 0.4, "num_steps": num_steps, "step_decay": decay}
    actual = steered(it, fields, x)
    assert_close(actual, expected.detach())
    assert_moved(actual, x)


def test_many_steps_are_one_vector() -> None:
    it, x = probe("linear"), vectors()
    steps = steered(it, {**MIXES[1], "alpha": 0.5, "num_steps": 4, "step_decay": 0.5}, x)
    at_once = steered(it, {**MIXES[1], "alpha": 0.5 * (1 + 0.5 + 0.25 + 0.125), "num_steps": 1}, x)
    assert_close(steps, at_once)
    assert_close(steps - x, (steps - x)[:1].expand_as(x))


def test_logits_go_where_they_are_sent() -> None:
    it, x = probe("linear"), vectors()
    after = logits(it, steered(it, {"target": ["warm"], "alpha": 0.5}, x))
    assert (after[:, 0] > logits(it, x)[:, 0]).all()
    after = logits(it, steered(it, {"avoid": ["warm"], "alpha": 0.5}, x))
    assert (after[:, 0] < logits(it, x)[:, 0]).all()


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_a_normalised_step_has_the_layers_scale(mix: dict[str, Any]) -> None:
    it, x = probe("linear"), vectors()
    fields = {**mix, "alpha": 0.1, "num_steps": 3, "step_decay": 0.5, "unit": "normalised"}
    size = 0.1 * SCALE[1] * (1 + 0.5 + 0.25)
    assert_close((steered(it, fields, x) - x).norm(dim=1), torch.full((len(x),), size))


@pytest.mark.parametrize("metric", ["variance", "covariance"])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_a_step_in_a_metric(mix: dict[str, Any], metric: str) -> None:
    """-M grad L, and normalised: v of length sqrt(v^T M^-1 v), the metric's scale."""
    it, x = with_metrics(probe("linear")), vectors()
    t = it.at(1)
    matrix = torch.diag(t["input_std"] ** 2) if metric == "variance" else random_covariance(x.shape[1])
    direction = weights_of(mix) @ (t["weight"] / t["input_std"]) @ matrix
    raw = steered(it, {**mix, "alpha": 0.3, "num_steps": 2, "metric": metric}, x)
    assert_close(raw, x.double() + 0.6 * direction)
    fields = {**mix, "alpha": 0.02, "num_steps": 3, "metric": metric, "unit": "normalised"}
    moved = (steered(it, fields, x) - x).double()
    length = (moved @ torch.linalg.inv(matrix) * moved).sum(1).sqrt()
    size = 0.06 * it.metadata.metric_scale[metric][1]
    torch.testing.assert_close(length, torch.full_like(length, size), rtol=1e-4, atol=0)
    assert_moved(raw, x)


@pytest.mark.parametrize("correlated", [False, True])
def test_on_gaussian_classes_the_covariance_gives_the_difference_of_means(correlated: bool) -> None:
    """Their best linear probe is W = Sigma^-1 delta, so Sigma W^T is delta; the variance does as well if the
    coordinates are uncorrelated, and the raw gradient never."""
    base, x = probe("linear"), vectors()
    delta = base.tensors["weight"].double()
    covariance = random_covariance(x.shape[1])
    covariance = covariance if correlated else torch.diag(covariance.diagonal())
    weight, std = delta @ torch.linalg.inv(covariance), covariance.diagonal().sqrt()
    tensors = {"weight": weight * std, "input_std": std, "covariance_up": weight @ covariance}
    it = Probe(base.metadata, {**base.tensors, **{name: t.float() for name, t in tensors.items()}})

    def likeness(metric: str) -> float:
        moved = steered(it, {"target": ["warm"], "alpha": 0.1, "metric": metric}, x) - x
        return float(torch.cosine_similarity(moved[0].double(), delta[0], dim=0))

    assert likeness("covariance") > 0.9999
    assert (likeness("variance") > 0.9999) != correlated
    assert likeness("raw") < 0.9


def test_alpha_0_keeps_the_bits() -> None:
    x = vectors()
    assert torch.equal(steered(probe("linear"), {"target": ["warm"], "alpha": 0}, x), x)
