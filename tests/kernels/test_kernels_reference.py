"""The truth itself: against torch.autograd, closed forms and the hidden-space programs in float64."""

import pytest
import torch
from kernel_cases import EDIT_TOLERANCE
from kernel_edits import Maker
from kernel_methods import METHODS
from kernel_probe_edits import double, gradient, make_probe, reflection, slot_weights

from ksteer_kernels import Flag, Loss, ProbeTables, Program
from ksteer_kernels.hidden.finish import finish
from ksteer_kernels.hidden.naive import run_program
from ksteer_kernels.hidden.token_settings import TokenSettings
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.reference import mlp, vectors
from ksteer_kernels.weights import written_rows

HIDDEN_SIZE = 48
WIDTHS = [(1, 1), (7, 5), (64, 64), (256, 128)]
MARGIN = 0.3


def build(widths, num_labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probe = double(make_probe(*widths, num_labels, HIDDEN_SIZE, generator))
    x = 3 * torch.randn(11, HIDDEN_SIZE, generator=generator).double()
    weights = torch.randn(num_labels, generator=generator).double()
    return probe, x, weights


def loss_of(logits, c, kind):
    """The losses as `ksteer_kernels.settings.Loss` states them, for autograd."""
    target, avoid, w = c < 0, c > 0, c.abs()
    if kind == Loss.SOFTMIN:
        over = (logits * c)[:, avoid].sum(1)
        return over + torch.log((w * torch.exp(-logits))[:, target].sum(1)) if target.any() else over
    if kind == Loss.HINGE:
        short = w * torch.relu(MARGIN - logits)
        long = w * torch.relu(logits + MARGIN)
        return short[:, target].sum(1) + long[:, avoid].sum(1)
    return logits @ c


def autograd_gradient(x, probe, c, kind=Loss.MEAN):
    x = x.clone().requires_grad_(True)
    loss_of(mlp.probe_logits(x, probe), c, kind).sum().backward()
    return x.grad


def cpu_slot(weights):
    """A slot in float64, its Gram matrices, too."""
    given = {name: tensor.double() for name, tensor in weights.given().items()}
    r = weights.basis.shape[0]
    m, k = given.get("matrix", torch.zeros(0, r)).shape[0], weights.num_labels
    empty = {
        "bias": torch.zeros(r), "matrix": torch.zeros(0, r), "matrix_bias": torch.zeros(m),
        "head": torch.zeros(0, m), "head_bias": torch.zeros(k), "threshold": torch.zeros(r),
        "activation": torch.zeros(r), "gate_unit": torch.full((r,), -1),
    }  # fmt: skip
    fields = {name: given.get(name, value.double()) for name, value in empty.items()}
    fields["gate_unit"] = fields["gate_unit"].long()
    metric = {name: given.get(name) for name in ("scale", "up")}
    written = written_rows(given["basis"], **metric)
    grams = {"gram": given["basis"] @ written.T, "edit_gram": written @ written.T}
    return CPUSlot.of(basis=given["basis"], **grams, **metric, **fields)


def token_settings(settings, n, width, num_labels, gain=None):
    """One row's settings for n tokens, in float64."""

    def wide(value, size):
        row = torch.zeros(size, dtype=torch.float64)
        if value is not None:
            row[: len(value)] = value
        return row.expand(n, size)

    names = ("strength", "decay", "margin", "until_target", "until_avoid", "cap")
    values = {name: torch.full((n,), getattr(settings, name), dtype=torch.float64) for name in names}
    counts = {name: torch.full((n,), int(getattr(settings, name))) for name in ("loss", "flags", "num_steps")}
    return TokenSettings(
        **values,
        **counts,
        readout=wide(settings.readout, width),
        scale=wide(settings.scale, width),
        label_weights=wide(settings.label_weights, num_labels),
        gain=None if gain is None else torch.full((n,), gain, dtype=torch.float64),
    )


def in_hidden_space(x, edit, weights, gain=None):
    """(x', steps) by the programs, in float64."""
    slot = cpu_slot(weights)
    settings = token_settings(edit.settings, len(x), weights.width, max(1, weights.num_labels), gain)
    p, program = x @ weights.basis.double().T, edit.settings.program
    s, steps = run_program(program, p, slot, settings)
    s, keep, _ = finish(s, p, (x * x).sum(1), slot, program, settings, None)
    return keep[:, None] * (x - slot.first_back(s)), steps


def relative(actual, expected, start):
    return float((actual - expected).norm() / (expected - start).norm())


@pytest.mark.parametrize("kind", list(Loss))
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("num_labels", [1, 9])
def test_gradient_is_autograds(widths, num_labels, kind):
    probe, x, c = build(widths, num_labels)
    by_logits = mlp.logit_gradient(mlp.probe_logits(x, probe), c, kind.name.lower(), MARGIN)
    actual = mlp.loss_gradient(x, probe, by_logits)
    torch.testing.assert_close(actual, autograd_gradient(x, probe, c, kind), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", list(Loss))
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("num_labels", [1, 9])
@pytest.mark.parametrize("num_steps", [1, 8, 64])
@pytest.mark.parametrize("decay", [1.0, 0.93])
def test_hidden_space_equals_autograd_loop(widths, num_labels, num_steps, decay, kind):
    probe, x, c = build(widths, num_labels)
    expected = x
    for t in range(num_steps):
        expected = expected - 0.4 * decay**t * autograd_gradient(expected, probe, c, kind)
    assert (expected - x).norm() > 0
    edit = gradient(0, probe, c, strength=0.4, num_steps=num_steps, decay=decay, loss=kind, margin=MARGIN)
    # The sums of a loop in another order meet a kink of a hinge or ReLU alike in all these cases.
    assert relative(edit.truth(x, 1.0)[0], expected, x) < 1e-12
    actual, steps = in_hidden_space(x, edit, slot_weights(probe))
    assert relative(actual, expected, x) < EDIT_TOLERANCE[torch.float64]
    assert (steps == num_steps).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_hidden_space(name):
    """The whole operator, bounds included, equals the method's definition, faded or not."""
    tables = ProbeTables.allocate(20, 64, 5, HIDDEN_SIZE, torch.float64, "cpu")
    maker = Maker(tables, 5, torch.Generator().manual_seed(2))
    edits = METHODS[name](maker)
    x = maker.normal(40, HIDDEN_SIZE, scale=2.0).double()
    for edit in edits:
        for gain in (None, 0.3):
            expected, steps = edit.truth(x, gain or 1.0)
            actual, taken = in_hidden_space(x, edit, maker.loaded[edit.settings.slot], gain)
            assert relative(actual, expected, x) < EDIT_TOLERANCE[torch.float64], edit.settings
            assert (steps is None) == (taken is None)
            assert steps is None or torch.equal(steps, taken)


def test_until_stops_tokens_at_different_steps():
    probe, x, _ = build((64, 64), 5)
    c = torch.tensor([-0.5, -0.5, 1.0, 0.0, 0.0]).double()
    edit = gradient(0, probe, c, strength=0.2, num_steps=40, until_target=1.0, until_avoid=0.5)
    after, steps = edit.truth(x, 1.0)
    logits = mlp.probe_logits(after, probe)
    reached = (logits[:, :2] >= 1.0).all(1) & (logits[:, 2] <= 0.5)
    assert len(steps.unique()) > 3
    assert (reached | (steps == 40)).all()
    assert torch.equal(in_hidden_space(x, edit, slot_weights(probe))[1], steps)


@pytest.mark.parametrize("kind", list(Loss))
def test_a_normalised_step_has_the_length_of_its_size(kind):
    probe, x, c = build((64, 64), 5)
    edit = gradient(0, probe, c, strength=0.6, num_steps=1, loss=kind, flags=Flag.NORMALISED, margin=9.0)
    lengths = (edit.truth(x, 1.0)[0] - x).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.6), rtol=1e-13, atol=0)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_hidden_space_reflection(widths, factor):
    probe, x, c = build(widths, 5)
    edit = reflection(0, probe, c, factor)
    expected, _ = edit.truth(x, 1.0)
    weights = slot_weights(probe)
    assert relative(in_hidden_space(x, edit, weights)[0], expected, x) < EDIT_TOLERANCE[torch.float64]
    # Using z1 in place of W1 x is the mistake this guards against.
    settings = token_settings(edit.settings, len(x), weights.width, 5)
    biased = cpu_slot(slot_weights(mlp.MLPWeights(probe.w1, 0 * probe.b1, *list_of(probe)[2:])))
    s, _ = run_program(Program.REFLECT, x @ probe.w1.T + probe.b1, biased, settings)
    assert relative(x - s @ probe.w1, expected, x) > 1e-4


def list_of(probe):
    return [probe.w1, probe.b1, probe.w2, probe.b2, probe.w3, probe.b3]


def test_reflection_keeps_the_norm_and_projection_removes_the_component():
    probe, x, c = build((64, 64), 5)
    v = mlp.loss_gradient(x, probe, c)
    reflected = mlp.reflect(x, probe, c, factor=2.0)
    torch.testing.assert_close(reflected.norm(dim=1), x.norm(dim=1), rtol=1e-13, atol=0)
    torch.testing.assert_close((reflected * v).sum(1), -(x * v).sum(1), rtol=1e-11, atol=1e-12)
    removed = mlp.reflect(x, probe, c, factor=1.0)
    assert ((removed * v).sum(1).abs() <= 1e-12 * x.norm(dim=1) * v.norm(dim=1)).all()


@pytest.mark.parametrize("flags", [Flag(0), Flag.NORMALISED])
def test_no_gradient_no_edit(flags):
    probe, x, c = build((64, 64), 5)
    dead = mlp.MLPWeights(*list_of(probe)[:3], probe.b2 - 1e6, probe.w3, probe.b3)
    for edit in (gradient(0, dead, c, num_steps=3, flags=flags), reflection(0, dead, c, 2.0)):
        assert torch.equal(edit.truth(x, 1.0)[0], x)
        assert torch.equal(in_hidden_space(x, edit, slot_weights(dead))[0], x)


def test_steps_lower_the_loss():
    probe, x, c = build((64, 64), 5)
    after, _ = mlp.gradient_steps(x, probe, c, alpha=1e-3, num_steps=4)
    assert (mlp.steering_loss(after, probe, c) < mlp.steering_loss(x, probe, c)).all()


def test_add_is_the_weighted_sum_of_vectors():
    basis = torch.eye(3, 5, dtype=torch.float64)
    x = torch.ones(2, 5, dtype=torch.float64)
    edited = vectors.add(x, basis, torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64), alpha=4.0)
    assert edited.tolist() == [[5.0, -1.0, 1.0, 1.0, 1.0]] * 2
