"""Linear probes: the gradient is the same at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm.probes.probe import Probe
from testbed.families import SCALE
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


def test_alpha_0_keeps_the_bits() -> None:
    x = vectors()
    assert torch.equal(steered(probe("linear"), {"target": ["warm"], "alpha": 0}, x), x)
