"""A slot with a metric: what the tables hold of it, what is refused, and what it means for the edit."""

from dataclasses import replace

import pytest
import torch
from kernel_cases import EDIT_TOLERANCE, make_case, one_stage
from kernel_edits import Edit
from kernel_metric_edits import METRICS, full, random_metric
from kernel_probe_edits import double, gradient, make_probe, plain_edits, slot_weights
from test_kernels_reference import autograd_gradient, in_hidden_space, relative

from ksteer_kernels import Flag, ProbeTables, Program, RowSettings, SlotWeights, check_metric
from ksteer_kernels.reference import mlp

HIDDEN_SIZE = 48
# float64, sums in another order: as in kernel_cases. Changed units add the condition number of the change.
EXACT, CHANGED_UNITS = EDIT_TOLERANCE[torch.float64], 1e-9


def build(kind, widths=(30, 20), seed=0):
    """A probe, a metric M [d, d], tokens and label weights, float64."""
    generator = torch.Generator().manual_seed(seed)
    probe = double(make_probe(*widths, 5, HIDDEN_SIZE, generator))
    x = 3 * torch.randn(11, HIDDEN_SIZE, generator=generator).double()
    c = torch.randn(5, generator=generator).double()
    return probe, random_metric(kind, HIDDEN_SIZE, generator), x, c


def slot_of(probe, metric):
    """The probe's slot under a metric, nothing rounded."""
    weights = slot_weights(probe)
    return replace(weights, scale=metric) if metric.ndim == 1 else replace(weights, up=probe.w1 @ metric)


def steps_of(probe, metric, c, **changes):
    """Truth and hidden-space form of a few steps: x -> x'."""
    edit = gradient(0, probe, c, metric, num_steps=6, strength=0.3, decay=0.9, **changes)
    weights = slot_of(probe, metric)
    return (lambda x: edit.truth(x, 1.0)[0]), (lambda x: in_hidden_space(x, edit, weights)[0])


@pytest.mark.parametrize("kind", METRICS)
def test_steps_are_autograds_times_the_metric(kind):
    probe, metric, x, c = build(kind)
    expected = x
    for t in range(6):
        expected = expected - 0.3 * 0.9**t * autograd_gradient(expected, probe, c) @ full(metric)
    for steered in steps_of(probe, metric, c):
        assert relative(steered(x), expected, x) < EXACT


@pytest.mark.parametrize("kind", METRICS)
def test_a_normalised_step_has_the_length_of_its_size_in_the_metric(kind):
    probe, metric, x, c = build(kind)
    edit = gradient(0, probe, c, metric, num_steps=1, strength=0.6, flags=Flag.NORMALISED)
    for edited in (edit.truth(x, 1.0)[0], in_hidden_space(x, edit, slot_of(probe, metric))[0]):
        moved = edited - x
        lengths = (moved * torch.linalg.solve(full(metric), moved.T).T).sum(1).sqrt()
        torch.testing.assert_close(lengths, torch.full_like(lengths, 0.6), rtol=EXACT, atol=0)


@pytest.mark.parametrize("kind", METRICS)
def test_a_step_is_the_steepest_of_its_length(kind):
    """No other direction of the same length in the metric lowers the loss faster."""
    probe, metric, x, c = build(kind)
    slope = mlp.loss_gradient(x, probe, c)
    step, length = mlp.metric_gradient(slope, metric)
    steepest = (slope * step / length).sum(1)
    noise = torch.randn(200, *x.shape, generator=torch.Generator().manual_seed(1)).double()
    other = noise @ torch.linalg.cholesky(full(metric)).T
    other = other / (other * torch.linalg.solve(full(metric), other.mT).mT).sum(-1, keepdim=True).sqrt()
    assert ((slope * other).sum(-1) < steepest).all()


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def linear_edit(weight, metric=None):
    """How far a step up a linear probe's logit moves a token [d], by the whole operator."""
    weights = SlotWeights(weight[None])
    if metric is not None:
        change = {"scale": metric} if metric.ndim == 1 else {"up": weight[None] @ metric}
        weights = replace(weights, **change)
    edit = Edit(RowSettings(0, Program.ADD, readout=torch.ones(1)))
    return in_hidden_space(torch.zeros(1, len(weight), dtype=torch.float64), edit, weights)[0][0]


def test_on_gaussian_classes_the_covariance_gives_the_mean_difference():
    """With a common covariance S the best linear probe is w = S^-1 (mu1 - mu0), so S w is the difference."""
    generator = torch.Generator().manual_seed(3)
    difference = torch.randn(HIDDEN_SIZE, generator=generator).double()
    covariance = random_metric("covariance", HIDDEN_SIZE, generator)
    probe = torch.linalg.solve(covariance, difference)
    assert cosine(linear_edit(probe, covariance), difference) == pytest.approx(1, abs=EXACT)
    assert cosine(linear_edit(probe, covariance.diagonal()), difference) < 0.9
    assert cosine(linear_edit(probe), difference) < 0.9

    uncorrelated = random_metric("variance", HIDDEN_SIZE, generator)
    probe = difference / uncorrelated
    assert cosine(linear_edit(probe, uncorrelated), difference) == pytest.approx(1, abs=EXACT)
    assert cosine(linear_edit(probe), difference) < 0.9


@pytest.mark.parametrize("flags", [Flag(0), Flag.NORMALISED])
@pytest.mark.parametrize("kind", METRICS)
def test_the_edit_does_not_depend_on_the_units_of_x(kind, flags):
    """Other units of the coordinates for a variance, any invertible map for a covariance: the probe reads the
    same, the statistics change along, and so does the edit. The raw gradient's does not."""
    probe, metric, x, c = build(kind)
    generator = torch.Generator().manual_seed(5)
    if kind == "variance":
        units = torch.randn(HIDDEN_SIZE, generator=generator).double().exp()
        change, other_metric = torch.diag(units), metric * units**2
    else:
        change = torch.randn(HIDDEN_SIZE, HIDDEN_SIZE, generator=generator).double()
        other_metric = change @ metric @ change.T
    other = replace(probe, w1=probe.w1 @ torch.linalg.inv(change))
    pairs = zip(
        steps_of(probe, metric, c, flags=flags), steps_of(other, other_metric, c, flags=flags), strict=True
    )
    for here, there in pairs:
        assert relative(there(x @ change.T), here(x) @ change.T, x @ change.T) < CHANGED_UNITS
    raw = [gradient(0, each, c, num_steps=6, strength=0.3, flags=flags).truth for each in (probe, other)]
    assert relative(raw[1](x @ change.T, 1.0)[0], raw[0](x, 1.0)[0] @ change.T, x @ change.T) > 0.1


def test_the_identity_as_a_metric_changes_no_bit(backend, device):
    """Ones, or the basis itself: the arithmetic of a slot with a metric is that of one without."""
    makers = []

    def rows(maker):
        makers.append(maker)
        steps = plain_edits(maker)
        return [[steps[0]], [steps[1].bounded(cap=0.05).flagged(Flag.NORMALISED)], *one_stage("add")(maker)]

    case = make_case(rows, num_tokens=20, hidden_size=40, device=device, max_steps=3)
    raw = case.run(backend)
    for slot, weights in makers[0].loaded.items():
        assert not case.probes.has_metric(slot)
        case.probes.load(slot, replace(weights, scale=torch.ones(40)))
        assert case.probes.has_metric(slot)
    assert torch.equal(case.run(backend), raw)
    for slot, weights in makers[0].loaded.items():
        case.probes.load(slot, replace(weights, up=weights.basis), up_slot=slot + 10)
        assert case.probes.has_metric(slot)
    assert torch.equal(case.run(backend), raw)


def test_without_a_metric_nothing_is_made_for_one():
    store = ProbeTables.allocate(2, 8, 3, 10, torch.float32, "cpu")
    store.load(0, SlotWeights(torch.randn(5, 10)))
    slot = store.cpu_slot(0)
    assert slot.edit_gram is slot.gram
    assert slot.first_back.weight.data_ptr() == slot.first.weight.data_ptr()
    assert torch.equal(store.edit_gram, store.gram)


def test_what_the_tables_hold():
    store = ProbeTables.allocate(4, 8, 3, 10, torch.bfloat16, "cpu")
    basis, scale, up = torch.randn(5, 10), torch.rand(10), torch.randn(5, 10)
    store.load(0, SlotWeights(basis, scale=scale))
    store.load(1, SlotWeights(basis, up=up), up_slot=3)
    assert store.up_slot.tolist() == [0, 3, 2, 3]
    assert torch.equal(store.column_scale, torch.stack([scale, *torch.ones(3, 10)]))
    assert torch.equal(store.basis[3, :5], up.bfloat16())
    stored = basis.bfloat16().double()
    for slot, written in ((0, stored * scale.double()), (1, up.bfloat16().double())):
        assert torch.equal(store.written(slot, torch.float64), written)
        assert torch.equal(store.gram[slot, :5, :5], (stored @ written.T).float())
        assert torch.equal(store.edit_gram[slot, :5, :5], (written @ written.T).float())


def test_clear_and_reload_forget_the_metric():
    store, empty = (ProbeTables.allocate(4, 8, 3, 10, torch.float32, "cpu") for _ in range(2))
    basis = torch.randn(5, 10)
    for weights, up_slot in (
        (SlotWeights(basis, scale=torch.rand(10)), None),
        (SlotWeights(basis, up=basis), 3),
    ):
        store.load(0, weights, up_slot)
        store.cpu_slot(0)
        store.clear(0)
        store.clear(3)
        for name, table in store.tensors().items():
            assert torch.equal(table, empty.tensors()[name]), name
        assert not store.cpu_up_slots
        store.load(0, weights, up_slot)
        store.load(0, SlotWeights(basis))
        assert not store.has_metric(0)
        assert torch.equal(store.cpu_slot(0).first_back.weight, basis.T)


@pytest.mark.parametrize(
    ("message", "change", "up_slot"),
    [
        ("scale: expected shape", {"scale": torch.ones(9)}, None),
        ("scale: expected a floating-point", {"scale": torch.ones(10, dtype=torch.int32)}, None),
        ("scale: holds a value that is not finite", {"scale": torch.full((10,), float("nan"))}, None),
        ("scale: holds a negative value", {"scale": -torch.ones(10)}, None),
        ("scale: given beside up", {"scale": torch.ones(10), "up": torch.ones(5, 10)}, 1),
        ("up: expected shape", {"up": torch.ones(4, 10)}, 1),
        ("up: holds a value that is not finite", {"up": torch.full((5, 10), float("inf"))}, 1),
        ("up: holds a value too large", {"up": torch.full((5, 10), 1e6)}, 1),
        ("up_slot: missing", {"up": torch.ones(5, 10)}, None),
        ("up_slot: 1, but", {}, 1),
        ("up_slot: 0 is the slot itself", {"up": torch.ones(5, 10)}, 0),
        ("up_slot: 2 is not in 0..1", {"up": torch.ones(5, 10)}, 2),
    ],
)
def test_a_bad_metric_is_named_and_changes_nothing(message, change, up_slot):
    store = ProbeTables.allocate(2, 8, 3, 10, torch.float16, "cpu")
    store.load(0, SlotWeights(torch.randn(5, 10), scale=torch.rand(10)))
    before = {name: table.clone() for name, table in store.tensors().items()}
    with pytest.raises(ValueError, match=f"^{message}"):
        store.load(0, SlotWeights(torch.randn(5, 10), **change), up_slot)
    for name, table in store.tensors().items():
        assert torch.equal(table, before[name]), name
    assert store.has_metric(0)


def test_what_is_undefined_under_a_metric_is_refused():
    store = ProbeTables.allocate(2, 8, 3, 10, torch.float32, "cpu")
    store.load(0, SlotWeights(torch.randn(5, 10), scale=torch.rand(10)))
    store.load(1, SlotWeights(torch.randn(5, 10)))
    kept = Flag.PRESERVE_NORM | Flag.REPORT
    refused = {
        "program: REFLECT": (Program.REFLECT, Flag(0)),
        "flags: PRESERVE_NORM": (Program.GRADIENT, kept),
    }
    for message, (program, flags) in refused.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            check_metric(RowSettings(0, program, flags=flags), store)
        check_metric(RowSettings(1, program, flags=flags), store)
    check_metric(RowSettings(0, Program.GRADIENT, flags=Flag.NORMALISED | Flag.REPORT, cap=0.1), store)
