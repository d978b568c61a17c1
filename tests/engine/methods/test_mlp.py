"""The MLP probe's methods, against autograd on the probe as trained."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_kernels.reference.vectors import add, matched_random
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

KINK = 2e-5
"""A ReLU input or a margin nearer than this may fall on either side in float32: such tokens are left out."""


def trained() -> Probe:
    return probe("mlp", activation_scale=SCALE)


class Path:
    """x of float64 tokens as they are moved, and which of them came near no kink on the way."""

    def __init__(self, it: Probe, x: Tensor) -> None:
        self.it, self.x = it, x.double()
        self.clear = torch.ones(len(x), dtype=torch.bool)

    def logits(self, x: Tensor) -> Tensor:
        """By the weights and the input statistics as they are stored."""
        t = self.it.at(1)
        z1 = ((x - t["input_mean"]) / t["input_std"]) @ t["w1"].T + t["b1"]
        z2 = torch.relu(z1) @ t["w2"].T + t["b2"]
        self.clear &= (z1.abs().amin(1) > KINK) & (z2.abs().amin(1) > KINK)
        return torch.relu(z2) @ t["w3"].T + t["b3"]

    def gradient(self, mix: dict[str, Any], loss: Any = "mean") -> Tensor:
        """dL/dx [n, d]."""
        x = self.x.detach().requires_grad_()
        f, c = self.logits(x), -weights_of(mix)
        target, avoid, weight = c < 0, c > 0, c.abs()
        if loss == "mean":
            value = f @ c
        elif loss == "softmin":
            value = f[:, avoid] @ weight[avoid]
            value = value + torch.logsumexp(torch.log(weight[target]) - f[:, target], dim=1)
        else:
            margin = math.log(loss["hinge"] / (1 - loss["hinge"]))
            value = torch.relu(margin - f[:, target]) @ weight[target]
            value = value + torch.relu(f[:, avoid] + margin) @ weight[avoid]
            self.clear &= (f.abs() - margin).abs().amin(1) > KINK
        value.sum().backward()
        assert x.grad is not None
        return x.grad


@pytest.mark.parametrize("unit", ["raw", "normalised"])
@pytest.mark.parametrize(
    ("loss", "mix"),
    [(loss, mix) for loss in ("mean", {"hinge": 0.7}) for mix in MIXES]
    + [("softmin", mix) for mix in MIXES[:2]],
    ids=str,
)
def test_gradient_is_descent_on_the_loss(mix: dict[str, Any], loss: Any, unit: str) -> None:
    """Four decaying steps from 60 tokens; a normalised step has the size asked, whatever the gradient's."""
    it, x = trained(), vectors(60)
    path, alpha = Path(it, x), 0.6 if unit == "raw" else 0.05
    for step in range(4):
        gradient = path.gradient(mix, loss)
        size = alpha * 0.7**step
        if unit == "normalised":
            length = gradient.norm(dim=1, keepdim=True)
            gradient = torch.where(length > 0, gradient / length, gradient) * SCALE[1]
        path.x = path.x.detach() - size * gradient
    fields = {**mix, "alpha": alpha, "num_steps": 4, "step_decay": 0.7, "loss": loss, "unit": unit}
    actual = steered(it, fields, x)
    assert int(path.clear.sum()) > 50
    assert_close(actual[path.clear], path.x[path.clear])
    assert float((actual - x).norm(dim=1).mean()) > 0.1


@pytest.mark.parametrize("unit", ["raw", "normalised"])
@pytest.mark.parametrize("metric", ["variance", "covariance"])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_a_step_in_a_metric_is_the_gradient_times_its_matrix(
    mix: dict[str, Any], metric: str, unit: str
) -> None:
    """x <- x - a M grad L; a normalised step v has length sqrt(v^T M^-1 v) = alpha times the scale."""
    it, x = with_metrics(trained()), vectors(60)
    variances = torch.diag(it.at(1)["input_std"] ** 2)
    matrix = variances if metric == "variance" else random_covariance(x.shape[1])
    path, alpha = Path(it, x), 0.5 if unit == "raw" else 0.03
    for step in range(4):
        gradient = path.gradient(mix)
        move = alpha * 0.7**step * gradient @ matrix
        if unit == "normalised":
            length = (gradient * (gradient @ matrix)).sum(1, keepdim=True).sqrt()
            move = torch.where(length > 0, move / length, move) * it.metadata.metric_scale[metric][1]
        path.x = path.x.detach() - move
    fields = {**mix, "alpha": alpha, "num_steps": 4, "step_decay": 0.7, "metric": metric, "unit": unit}
    actual = steered(it, fields, x)
    assert int(path.clear.sum()) > 50
    assert_close(actual[path.clear], path.x[path.clear])
    assert float((actual - x).norm(dim=1).mean()) > 0.1


def test_a_step_by_the_variance_does_not_depend_on_the_units_of_x() -> None:
    """Every coordinate in units of its own: the same edit, which a raw step is not."""
    it, x = trained(), vectors(60)
    units = 0.25 + 2 * torch.rand(x.shape[1], generator=torch.Generator().manual_seed(2))
    statistics = {name: it.tensors[name] * units for name in ("input_mean", "input_std")}
    other = Probe(it.metadata, {**it.tensors, **statistics})
    fields = {**MIXES[0], "alpha": 0.5, "num_steps": 3}
    for metric, is_same in (("variance", True), ("raw", False)):
        asked = {**fields, "metric": metric}
        apart = (steered(other, asked, x * units) / units - steered(it, asked, x)).abs().amax(1)
        assert bool(apart.median() < 1e-5) == is_same, apart  # the median: no kink decides


def test_logits_go_where_they_are_sent() -> None:
    """A small step changes the loss to first order by -alpha |grad|^2."""
    it, x = trained(), vectors(60)
    probe = it
    before, after = probe.logits(x), probe.logits(steered(it, {**MIXES[0], "alpha": 1e-3, "num_steps": 1}, x))
    assert (after[:, 0] > before[:, 0]).all()


@pytest.mark.parametrize("sides", [("target",), ("target", "avoid")], ids=str)
def test_until_stops_each_token_where_it_is_reached(sides: tuple[str, ...]) -> None:
    """Nearly everybody gets there, and nobody a step further; who is there already keeps its bits."""
    it, x = trained(), vectors(60)

    def probabilities(x: Tensor) -> Tensor:
        return torch.sigmoid(Path(it, x).logits(x.double()))

    until = {"target": float(probabilities(x)[:, 0].quantile(0.7))}
    if "avoid" in sides:
        until["avoid"] = float(probabilities(x)[:, 1].quantile(0.5))

    def reached(x: Tensor) -> Tensor:
        p = probabilities(x)
        return (p[:, 0] >= until["target"]) & (p[:, 1] <= until.get("avoid", 1.0))

    fields = {"target": ["warm"], "avoid": ["cold"], "alpha": 0.3, "until": until}
    runs = [x, *(steered(it, {**fields, "num_steps": steps}, x) for steps in range(1, 25))]
    assert 5 < int(reached(x).sum()) < 30
    assert int(reached(runs[-1]).sum()) > 50
    for before, after in pairwise(runs):
        there = reached(before)
        assert torch.equal(after[there], before[there])
        assert not (after == before).all(1)[~there].any()


@pytest.mark.parametrize(("method", "factor"), [("reflect", 2.0), ("project", 1.0)])
@pytest.mark.parametrize("avoid", [["warm"], {"cold": 1, "dry": 3}], ids=str)
def test_reflect_and_project_along_the_gradient(method: str, factor: float, avoid: Any) -> None:
    """Reflect keeps the norm; project leaves nothing along the gradient at x; a zero gradient keeps x."""
    it, x = trained(), vectors(60)
    path = Path(it, x)
    v = path.gradient({"avoid": avoid})
    square = (v * v).sum(1, keepdim=True)
    share = torch.where(square > 0, (path.x * v).sum(1, keepdim=True) / square, 0.0)
    actual = steered(it, {"avoid": avoid, "method": method}, x)
    assert int(path.clear.sum()) > 50
    clear = path.clear
    assert_close(actual[clear], (path.x - factor * share * v)[clear])
    along = ((actual.double() - (1 - factor) * path.x) * torch.nn.functional.normalize(v)).sum(1)[clear]
    assert_close(along, torch.zeros_like(along))
    if method == "reflect":
        assert_close(actual.norm(dim=1)[clear], x.norm(dim=1)[clear])
    assert float((actual - x).norm(dim=1).mean()) > 0.1


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_add_and_random_use_the_label_vectors(mix: dict[str, Any]) -> None:
    it, x = trained(), vectors()
    rows = it.at(1)["label_vectors"]
    for method, directions in (("add", rows), ("random", matched_random(rows))):
        expected = add(x.double(), directions, weights_of(mix), alpha=0.7)
        actual = steered(it, {**mix, "alpha": 0.7, "method": method}, x)
        assert_close(actual, expected)
        assert_moved(actual, x)


@pytest.mark.parametrize("method", ["gradient", "add", "random"])
def test_alpha_0_keeps_the_bits(method: str) -> None:
    x = vectors()
    assert torch.equal(steered(trained(), {"target": ["warm"], "alpha": 0, "method": method}, x), x)
