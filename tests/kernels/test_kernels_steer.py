"""Both backends against the truth, at odd shapes and with everything mixed."""

import pytest
import torch
from kernel_affine_edits import Dictionary, clamp_slot, clamping
from kernel_cases import assert_edit_close, make_case, one_stage, poisoned_workspace
from kernel_methods import METHODS
from kernel_probe_edits import loss_edits, plain_edits

from ksteer_kernels import (
    Activation,
    ReportBuffers,
    RowTables,
    Workspace,
    packed,
    plan_groups,
    steer_,
    steer_groups_,
)

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "names"),
    [(1, 40, ()), (3, 63, ()), (63, 130, ()), (123, 40, ("plain", "losses", "sae"))],
)
def test_matches_the_truth(backend, device, dtype, num_tokens, hidden_size, names):
    case = make_case(
        one_stage(*names), num_tokens=num_tokens, hidden_size=hidden_size, dtype=dtype, device=device,
        max_steps=4,
    )  # fmt: skip
    assert_edit_close(case, case.run(backend), case.truth())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("with_gain", [False, True])
def test_each_method_alone(backend, device, name, with_gain):
    case = make_case(
        one_stage(name), num_tokens=33, hidden_size=63, device=device, with_residual=with_gain,
        with_gain=with_gain, seed=1,
    )  # fmt: skip
    truth = case.truth()
    assert truth.norm() > 0
    assert_edit_close(case, case.run(backend), truth)


def test_widths_beyond_one_tile(backend, device):
    def rows(maker):
        wide, tall = loss_edits(maker, (150, 97)), plain_edits(maker, (33, 140))
        return [[edit] for edit in (wide[0], wide[3], *tall)]

    case = make_case(rows, num_tokens=18, hidden_size=70, device=device, max_width=150, max_steps=3)
    assert_edit_close(case, case.run(backend), case.truth())


def test_a_wide_probe_with_a_hundred_labels(backend, device):
    case = make_case(
        lambda maker: [[edit] for edit in loss_edits(maker, (512, 300))],
        num_tokens=5, hidden_size=40, device=device, max_width=512, num_labels=100, max_steps=2,
    )  # fmt: skip
    assert_edit_close(case, case.run(backend), case.truth())


def test_a_hundred_features_next_to_a_narrow_slot(backend, device):
    def rows(maker):
        directions = maker.directions(200)
        features = Dictionary(directions[:100], maker.normal(100), maker.normal(100).abs(), directions[100:])
        slot = maker.load(clamp_slot(features, Activation.JUMPRELU))
        clamp = clamping(slot, features, torch.arange(100) % 3 == 0, maker.normal(100).abs())
        return [[clamp], *([edit] for edit in METHODS["add"](maker))]

    case = make_case(rows, num_tokens=20, hidden_size=130, device=device, max_width=200)
    assert_edit_close(case, case.run(backend), case.truth())


def test_more_labels_than_width(backend, device):
    case = make_case(
        lambda maker: [[edit] for edit in loss_edits(maker, (7, 5))],
        num_tokens=21, hidden_size=40, device=device, max_width=8, num_labels=19, max_steps=2,
    )  # fmt: skip
    assert_edit_close(case, case.run(backend), case.truth())


def test_sixty_four_steps(backend, device):
    case = make_case(one_stage("plain"), num_tokens=16, hidden_size=40, device=device, max_steps=64)
    assert_edit_close(case, case.run(backend), case.truth())


def test_half_weights_under_float32_activations(backend, device):
    case = make_case(num_tokens=35, hidden_size=63, dtype=torch.bfloat16, device=device, max_steps=3)
    case.hidden, case.residual = case.hidden.float(), case.residual.float()
    assert_edit_close(case, case.run(backend), case.truth())


@pytest.mark.parametrize("num_tokens", [300, 1030])
def test_prefill_sizes(triton_device, num_tokens):
    def rows(maker):
        steps = plain_edits(maker, (20, 17))
        return [[steps[0]], [steps[1].bounded(cap=0.1)], *one_stage("lorest")(maker)]

    case = make_case(
        rows, num_tokens=num_tokens, hidden_size=40, device=triton_device, max_width=20, max_steps=2
    )
    assert_edit_close(case, case.run("triton"), case.run("torch").double().cpu() - case.hidden.double().cpu())


def test_slices_of_larger_buffers(backend, device):
    """Activations may be padded in both directions; nothing outside the slice is touched."""
    case = make_case(num_tokens=40, hidden_size=40, device=device, max_steps=3)
    expected = case.run(backend)
    buffer = torch.full((48, 64), float("nan"), device=device)
    buffer[:40, :40] = case.hidden
    case.run_on(buffer[:40, :40], backend)
    torch.testing.assert_close(buffer[:40, :40], expected, rtol=1e-5, atol=1e-6)
    assert torch.isnan(buffer[40:]).all()
    assert torch.isnan(buffer[:, 40:]).all()


def test_a_plan_is_reusable():
    case = make_case(num_tokens=50, hidden_size=40)
    groups = plan_groups(case.token_row[0], case.rows, case.layer, 50)
    expected = case.run("torch")
    for _ in range(2):
        edited = case.hidden.clone()
        steer_groups_(edited, case.residual, case.probes, groups)
        assert torch.equal(edited, expected)
    assert plan_groups(torch.full((50,), -1, dtype=torch.int32), case.rows, case.layer, 50) == []


@pytest.mark.parametrize("packed_from_rows", [1, 10**9])
def test_packed_and_plain_products_agree_with_the_truth(monkeypatch, packed_from_rows):
    monkeypatch.setattr(packed, "PACKED_FROM_ROWS", packed_from_rows)
    case = make_case(num_tokens=123, hidden_size=63)
    assert_edit_close(case, case.run("torch"), case.truth())


def test_a_reloaded_slot_is_the_one_that_steers(backend, device):
    """Nothing remembered from the weights that were in the slot before."""
    tokens = {"num_tokens": 63, "hidden_size": 40, "device": device, "max_steps": 3}
    makers = []

    def rows(maker):
        makers.append(maker)
        return one_stage()(maker)

    first, second = make_case(rows, seed=1, **tokens), make_case(rows, seed=2, **tokens)
    expected = second.run(backend)
    first.run(backend)
    for slot, weights in makers[1].loaded.items():
        makers[0].reload(slot, weights)
    second.probes = first.probes
    assert torch.equal(second.run(backend), expected)


def test_consecutive_tokens_of_one_group():
    """Groups whose tokens are consecutive take another path through the CPU code."""
    case = make_case(num_tokens=60, hidden_size=40)
    case.token_row[:] = torch.arange(63, dtype=torch.int32) // 2
    assert any(group.span for group in plan_groups(case.token_row[0], case.rows, case.layer, 60))
    assert_edit_close(case, case.run("torch"), case.truth())


def test_errors_say_what_is_wrong(backend, device):
    case = make_case(num_tokens=4, hidden_size=40, device=device)
    arguments = (case.token_row, case.probes, case.rows, case.layer)
    workspace = Workspace.allocate(2, 40, device)
    with pytest.raises(ValueError, match="hidden"):
        steer_(case.hidden[:, :39], None, *arguments, workspace=workspace, backend=backend)
    with pytest.raises(ValueError, match="residual"):
        steer_(case.hidden, case.residual[:3], *arguments, workspace=workspace, backend=backend)
    for rows in (case.token_row[:, :3], case.token_row.repeat(2, 1)):
        with pytest.raises(ValueError, match="token_row"):
            steer_(case.hidden, None, rows, *arguments[1:], workspace=workspace, backend=backend)
    gain = torch.ones(1, 3, device=device)
    with pytest.raises(ValueError, match="gain"):
        steer_(case.hidden, None, *arguments, gain=gain, workspace=workspace, backend=backend)
    with pytest.raises(ValueError, match="backend"):
        steer_(case.hidden, None, *arguments, backend="cuda")
    if backend == "triton":
        with pytest.raises(ValueError, match="workspace"):
            steer_(case.hidden, None, *arguments, backend=backend)
        with pytest.raises(ValueError, match="2 tokens"):
            steer_(case.hidden, None, *arguments, workspace=workspace, backend=backend)
        narrow = Workspace.allocate(4, 40, device)
        with pytest.raises(ValueError, match="labels"):
            steer_(case.hidden, None, *arguments, workspace=narrow, backend=backend)
        other = RowTables.allocate(2, 3, 39, 5, device)
        with pytest.raises(ValueError, match="rows: "):
            steer_(
                case.hidden, None, case.token_row, case.probes, other, 0, workspace=narrow, backend=backend
            )
        reports = ReportBuffers.allocate(2, 3, 5, device)
        with pytest.raises(ValueError, match="reports: "):
            steer_(
                case.hidden, None, *arguments, workspace=poisoned_workspace(case), backend=backend,
                reports=reports,
            )  # fmt: skip
        tall = poisoned_workspace(case)
        with pytest.raises(ValueError, match="contiguous"):
            steer_(case.hidden.T.contiguous().T, None, *arguments, workspace=tall, backend=backend)
