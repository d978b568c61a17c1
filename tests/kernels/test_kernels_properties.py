"""What each method promises, whatever the weights, as the tokens that come out show it."""

import pytest
import torch
from kernel_affine_edits import Dictionary, ablation_of, ace_edits, clamp_slot, clamping, loreft_edits
from kernel_cases import NORM_TOLERANCE, make_case
from kernel_edits import Edit, faded, weighted
from kernel_methods import METHODS, bounded_edits
from kernel_metric_edits import METRICS
from kernel_probe_edits import gradient, load_probe, reflect_edits

from ksteer_kernels import Activation, Flag, Program, RowSettings, SlotWeights
from ksteer_kernels.reference import mlp

TOKENS = {"num_tokens": 60, "hidden_size": 64}


def streams(case, backend):
    """(x, x') [T, d] in float64."""
    before, after = case.hidden.double().cpu(), case.run(backend).double().cpu()
    rest = 0.0 if case.residual is None else case.residual.double().cpu()
    return before + rest, after + rest


def alone(make, device, **changes):
    """A case in which every token has the one row that make returns, or one of its rows."""
    rows = lambda maker: [[edit] for edit in make(maker)]  # noqa: E731
    case = make_case(rows, device=device, **{**TOKENS, **changes})
    case.token_row[:] = torch.arange(case.token_row.shape[1]) % len(case.plans)
    return case


def test_reflection_keeps_the_norm(backend, device):
    x, after = streams(alone(lambda maker: reflect_edits(maker)[:1], device), backend)
    assert ((after - x).norm(dim=1) > 0.05 * x.norm(dim=1)).any()
    torch.testing.assert_close(after.norm(dim=1), x.norm(dim=1), rtol=NORM_TOLERANCE, atol=0)


def test_a_rotation_keeps_the_norm(backend, device):
    """AFFINE with M = I - R in a plane turns what x has in it, and nothing else."""

    def make(maker):
        plane = torch.linalg.qr(maker.normal(64, 2))[0].T
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        slot = maker.load(SlotWeights(plane, matrix=torch.eye(2) - turn))
        settings = RowSettings(slot, Program.AFFINE, scale=torch.ones(2))
        return [
            Edit(
                settings,
                faded(
                    lambda x: x - (x @ plane.T.double()) @ (torch.eye(2) - turn).T.double() @ plane.double()
                ),
            )
        ]

    x, after = streams(alone(make, device), backend)
    assert ((after - x).norm(dim=1) > 0.05 * x.norm(dim=1)).any()
    torch.testing.assert_close(after.norm(dim=1), x.norm(dim=1), rtol=NORM_TOLERANCE, atol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rho", [0.0, 0.01, 0.1])
def test_no_edit_is_longer_than_its_cap(backend, device, name, rho):
    """Before its norm is preserved, which may move it a little further."""

    def make(maker):
        edits = [edit for edit in METHODS[name](maker) if Flag.PRESERVE_NORM not in edit.settings.flags]
        return [edit.bounded(cap=rho) for edit in edits]

    x, after = streams(alone(make, device, max_steps=3), backend)
    length, room = (after - x).norm(dim=1), rho * x.norm(dim=1)
    assert (length <= room * (1 + NORM_TOLERANCE) + 2**-23 * x.norm(dim=1)).all()
    if rho == 0.01:
        assert (length > 0.99 * room).any()


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in METRICS]
)  # `check_metric` refuses it
def test_norms_are_preserved(backend, device, name):
    case = alone(
        lambda maker: [edit.bounded(preserve=True) for edit in METHODS[name](maker)], device, max_steps=3
    )
    x, after = streams(case, backend)
    assert (after != x).any(1).sum() > 30
    torch.testing.assert_close(after.norm(dim=1), x.norm(dim=1), rtol=NORM_TOLERANCE, atol=0)


def test_until_is_reached_or_all_steps_are_spent(backend, device):
    kept = {}

    def make(maker):
        slot, kept["probe"] = load_probe(maker, (24, 17))
        c = maker.label_weights((0,), (1,))
        return [
            gradient(slot, kept["probe"], c, strength=0.3, num_steps=12, until_target=1.0, until_avoid=0.4)
        ]

    case = alone(make, device)
    x, after = streams(case, backend)
    logits = mlp.probe_logits(after, kept["probe"])
    reached = (logits[:, 0] >= 1.0 - 1e-4) & (logits[:, 1] <= 0.4 + 1e-4)
    spent = torch.tensor([int(case.edit_of(t).truth(x[t : t + 1], 1.0)[1]) == 12 for t in range(len(x))])
    assert (reached | spent).all()
    assert reached.sum() > 5
    assert (after[reached] == x[reached]).all(1).any(), "one was there already, and is left alone"


def test_ace_puts_the_component_where_the_means_are(backend, device):
    """Alpha 0: at the negatives' mean; alpha 1: at the positives' mean, a direction further."""
    kept = {}

    def make(maker):
        unit = maker.units(1)
        negatives, length = maker.normal(64, scale=0.3), 2.5
        kept.update(unit=unit[0].double(), low=float(negatives @ unit[0]), length=length)
        slot = maker.load(SlotWeights(unit, matrix=torch.eye(1)))
        goals = [kept["low"] + alpha * length for alpha in (0.0, 1.0)]
        affine = [
            RowSettings(slot, Program.AFFINE, scale=torch.ones(1), readout=-torch.tensor([g])) for g in goals
        ]
        return [Edit(settings) for settings in affine]

    x, after = streams(alone(make, device), backend)
    component = after @ kept["unit"]
    goal = kept["low"] + kept["length"] * (torch.arange(60) % 2)
    torch.testing.assert_close(component, goal.double(), rtol=0, atol=1e-5)
    elsewhere = torch.eye(64).double() - torch.outer(kept["unit"], kept["unit"])
    torch.testing.assert_close(after @ elsewhere, x @ elsewhere, rtol=0, atol=1e-5)


def test_ablation_leaves_no_component(backend, device):
    kept = {}

    def make(maker):
        unit = kept["unit"] = maker.units(1)
        slot = maker.load(SlotWeights(unit, matrix=torch.eye(1)))
        edit = weighted([(1.0, ablation_of(unit[0].double(), 1.0))])
        return [Edit(RowSettings(slot, Program.AFFINE, scale=torch.ones(1)), edit)]

    _, after = streams(alone(make, device), backend)
    assert (after @ kept["unit"][0].double()).abs().max() < 1e-5


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.JUMPRELU])
def test_clamping_is_encode_set_decode_plus_error(backend, device, activation):
    """With a whole random dictionary; the slot holds the chosen features alone."""
    kept = {}

    def make(maker):
        whole = Dictionary(
            maker.directions(90), maker.normal(90, scale=0.3), maker.normal(90).abs(), maker.directions(90)
        )
        chosen, values = torch.tensor([3, 4, 50, 89]), torch.tensor([2.0, 0.0, 1.0, 0.5])
        kept.update(whole=whole, chosen=chosen, values=values)
        part = Dictionary(
            *(getattr(whole, name)[chosen] for name in ("w_enc", "b_enc", "threshold", "w_dec"))
        )
        slot = maker.load(clamp_slot(part, activation))
        return [clamping(slot, part, torch.ones(4, dtype=torch.bool), values)]

    x, after = streams(alone(make, device), backend)
    whole = kept["whole"]
    z = x @ whole.w_enc.T.double() + whole.b_enc
    f = torch.relu(z) if activation == Activation.RELU else torch.where(z > whole.threshold, z, 0.0)
    error = x - f @ whole.w_dec.double()
    f[:, kept["chosen"]] = kept["values"].double()
    torch.testing.assert_close(after, f @ whole.w_dec.double() + error, rtol=0, atol=1e-5)


def test_loreft_moves_within_its_rotation_alone(backend, device):
    case = alone(lambda maker: loreft_edits(maker)[:1], device)
    x, after = streams(case, backend)
    rotation = case.probes.basis[1, :3].double().cpu()
    outside = torch.eye(64).double() - rotation.T @ rotation
    torch.testing.assert_close(after @ outside, x @ outside, rtol=0, atol=1e-5)
    inner, goal = after @ rotation.T, x @ case.probes.basis[1, 6:9].double().cpu().T
    bias = -case.rows.readout[case.layer, 0, :3].double().cpu()
    torch.testing.assert_close(inner, goal + bias, rtol=0, atol=1e-5)


def test_zero_vectors_stay_where_they_are_asked_to(backend, device):
    """|x| = 0: nothing is left under a cap, and norm preservation makes no NaN."""
    case = alone(lambda maker: [*bounded_edits(maker)[:6], *ace_edits(maker)[:1]], device, max_steps=2)
    case.hidden[:] = 0.0
    case.residual = None
    edited = case.run(backend)
    assert torch.isfinite(edited).all()
    rows = case.token_row[0, :60]
    assert not edited[rows < 6].any()
    assert edited[rows == 6].any()
