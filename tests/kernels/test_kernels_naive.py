"""The truth itself: against torch.autograd, and against the hidden-space form, all in float64."""

import pytest
import torch
from kernel_cases import EDIT_TOLERANCE, double, make_probe

from ksteer_kernels.hidden.naive import gradient_program, reflect_program, step_sizes
from ksteer_kernels.steer import naive

HIDDEN_SIZE = 48
WIDTHS = [(1, 1), (7, 5), (64, 64), (256, 128)]


def build(widths, num_labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probe = double(make_probe(*widths, num_labels, HIDDEN_SIZE, generator))
    x = 3 * torch.randn(11, HIDDEN_SIZE, generator=generator).double()
    weights = torch.randn(num_labels, generator=generator).double()
    return probe, x, weights


def autograd_gradient(x, probe, label_weights):
    x = x.clone().requires_grad_(True)
    naive.steering_loss(x, probe, label_weights).sum().backward()
    return x.grad


def relative(actual, expected, start):
    return float((actual - expected).norm() / (expected - start).norm())


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("num_labels", [1, 9])
def test_gradient_is_autograds(widths, num_labels):
    probe, x, weights = build(widths, num_labels)
    expected = autograd_gradient(x, probe, weights)
    torch.testing.assert_close(naive.loss_gradient(x, probe, weights), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("num_labels", [1, 9])
@pytest.mark.parametrize("num_steps", [1, 2, 8, 64])
@pytest.mark.parametrize("decay", [1.0, 0.93])
def test_hidden_space_equals_autograd_loop(widths, num_labels, num_steps, decay):
    probe, x, weights = build(widths, num_labels)
    expected = x
    for t in range(num_steps):
        expected = expected - 0.4 * decay**t * autograd_gradient(expected, probe, weights)
    looped = naive.gradient_steps(x, probe, weights, alpha=0.4, num_steps=num_steps, step_decay=decay)
    s = gradient_program(
        x @ probe.w1.T, probe.b1, probe.w2, probe.b2, probe.w1 @ probe.w1.T, probe.w3.T @ weights,
        [0.4 * decay**t for t in range(num_steps)],
    )  # fmt: skip
    assert (expected - x).norm() > 0
    assert relative(looped, expected, x) < 1e-13
    assert relative(x - s @ probe.w1, expected, x) < EDIT_TOLERANCE[torch.float64]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_hidden_space_reflection(widths, factor):
    probe, x, weights = build(widths, 5)
    expected = naive.reflect(x, probe, weights, factor=factor)
    gram = probe.w1 @ probe.w1.T
    readout = probe.w3.T @ weights
    p = x @ probe.w1.T
    s = reflect_program(p, probe.b1, probe.w2, probe.b2, gram, readout, factor)
    assert relative(x - s @ probe.w1, expected, x) < EDIT_TOLERANCE[torch.float64]
    # Using z1 in place of W1 x is the mistake this guards against.
    wrong = reflect_program(
        p + probe.b1, torch.zeros_like(probe.b1), probe.w2, probe.b2, gram, readout, factor
    )
    assert relative(x - wrong @ probe.w1, expected, x) > 1e-4


def test_reflection_keeps_the_norm_and_projection_removes_the_component():
    probe, x, weights = build((64, 64), 5)
    v = naive.loss_gradient(x, probe, weights)
    reflected = naive.reflect(x, probe, weights, factor=2.0)
    torch.testing.assert_close(reflected.norm(dim=1), x.norm(dim=1), rtol=1e-13, atol=0)
    torch.testing.assert_close((reflected * v).sum(1), -(x * v).sum(1), rtol=1e-11, atol=1e-12)
    removed = naive.reflect(x, probe, weights, factor=1.0)
    assert ((removed * v).sum(1).abs() <= 1e-12 * x.norm(dim=1) * v.norm(dim=1)).all()


def test_no_gradient_no_edit():
    probe, x, weights = build((64, 64), 5)
    dead = naive.ProbeWeights(probe.w1, probe.b1, probe.w2, probe.b2 - 1e6, probe.w3, probe.b3)
    assert torch.equal(naive.reflect(x, dead, weights, factor=2.0), x)
    assert torch.equal(naive.gradient_steps(x, dead, weights, alpha=1.0, num_steps=3), x)
    s = reflect_program(
        x @ dead.w1.T, dead.b1, dead.w2, dead.b2, dead.w1 @ dead.w1.T, dead.w3.T @ weights, 2.0
    )
    assert torch.equal(s, torch.zeros_like(s))


def test_steps_lower_the_loss():
    probe, x, weights = build((64, 64), 5)
    after = naive.gradient_steps(x, probe, weights, alpha=1e-3, num_steps=4)
    assert (naive.steering_loss(after, probe, weights) < naive.steering_loss(x, probe, weights)).all()


def test_add_is_the_weighted_sum_of_vectors():
    vectors = torch.eye(3, 5, dtype=torch.float64)
    x = torch.ones(2, 5, dtype=torch.float64)
    edited = naive.add(x, vectors, torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64), alpha=4.0)
    assert edited.tolist() == [[5.0, -1.0, 1.0, 1.0, 1.0]] * 2


def test_step_sizes_end_with_each_row():
    sizes = step_sizes(torch.tensor([2.0, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([3, 2]))
    assert sizes.tolist() == [[2.0, 1.0], [1.0, 0.0], [0.5, 0.0]]
