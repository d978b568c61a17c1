"""No strength a request can ask for puts a value that is not finite into the residual stream."""

import pytest
import torch
from kernel_cases import make_case, one_stage, poisoned_workspace
from kernel_methods import METHODS

from ksteer_kernels import Program, native, plan_groups, steer_groups_


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_huge_settings_stay_finite_and_to_themselves(backend, device, name, dtype):
    case = make_case(one_stage(name), num_tokens=40, hidden_size=40, device=device, dtype=dtype, max_steps=2)
    before, entry = case.run(backend), case.layer
    is_affine = case.plans[0][0].settings.program == Program.AFFINE
    if is_affine:
        case.rows.readout[entry, 0] *= 1e38
        case.rows.scale[entry, 0] *= 1e38
    else:
        case.rows.strength[entry, 0] = 3e38
        case.rows.num_steps[entry, 0] = 8
    after = case.run(backend)
    others = case.token_row[0, :40] != 0
    assert torch.isfinite(after).all()
    assert not others.all()
    assert torch.equal(after[others], before[others])


def test_a_token_that_is_not_finite_is_left_alone(backend, device):
    case = make_case(num_tokens=50, hidden_size=40, device=device, max_steps=2)
    broken = torch.arange(50, device=device) % 2 == 0
    before = case.run(backend)
    case.hidden[broken, 3] = float("nan")
    case.hidden[0::4, 3] = float("inf")
    constant = case.tokens(lambda edit: edit.settings.program == Program.ADD)
    after = case.run(backend)
    kept = broken & ~constant
    assert kept.any()
    assert torch.equal(after[kept].nan_to_num(), case.hidden[kept].nan_to_num())
    finite = torch.isfinite(case.hidden)
    assert torch.isfinite(after[finite]).all()
    assert torch.allclose(after[~broken], before[~broken], atol=1e-4)  # a product may sum in another order


def counted(case, backend):
    """(the steered batch, how many edits were dropped) of one run."""
    edited = case.hidden.clone()
    if backend == "triton":
        workspace = poisoned_workspace(case)
        before = int(workspace.dropped)
        case.run_on(edited, backend, workspace=workspace)
        return edited, int(workspace.dropped) - before
    dropped = []
    for stage in range(case.rows.num_stages):
        gain = None if case.gain is None else case.gain[stage]
        entry = case.layer * case.rows.num_stages + stage
        groups = plan_groups(case.token_row[stage], case.rows, entry, len(edited), gain)
        steer_groups_(
            edited, case.residual, case.probes, groups, use_native=backend == "native",
            count_dropped=dropped.append,
        )  # fmt: skip
    return edited, sum(dropped)


@pytest.mark.parametrize("path", ["torch", "triton"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_edits_are_counted(path, value, dtype, triton_runs):
    """Edits that look at x are dropped at a token that is not finite, and counted once; others are not."""
    if path == "triton" and not triton_runs:
        pytest.skip("triton was imported without its interpreter; covered by test_kernels_subprocess.py")
    device = "cuda" if path == "triton" and torch.cuda.is_available() else "cpu"
    case = make_case(num_tokens=50, hidden_size=40, dtype=dtype, max_steps=2, device=device)
    before, dropped = counted(case, path)
    assert dropped == 0
    broken = torch.arange(50, device=device) % 3 == 0
    case.hidden[broken, 5] = value
    looks = case.tokens(lambda edit: edit.settings.program not in (Program.ADD, Program.CONDITION))
    looks &= case.tokens(lambda edit: edit.settings.strength != 0)
    gradient = case.tokens(lambda edit: edit.settings.program == Program.GRADIENT)
    active = looks & ~(gradient & case.tokens(lambda edit: edit.settings.num_steps == 0))
    after, dropped = counted(case, path)
    assert (broken & active).any()
    assert dropped == int((broken & active).sum())
    assert torch.equal(after[broken & active].nan_to_num(), case.hidden[broken & active].nan_to_num())
    assert torch.allclose(after[~broken].float(), before[~broken].float(), atol=1e-4)  # as above


@pytest.fixture(params=["torch", "native"])
def plain_path(request, monkeypatch):
    """Both paths of plain steps; the test must have taken the one it was given."""
    if request.param == "native" and native.gradient_kernel() is None:
        pytest.skip("no native kernel: no compiler")
    ran, original = [], native.edit_

    def noted(*args):
        dropped = original(*args)
        ran.append(dropped is not None)
        return dropped

    monkeypatch.setattr(native, "edit_", noted)
    yield request.param
    assert set(ran) == ({True} if request.param == "native" else set())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_plain_steps_are_counted(plain_path, value, dtype):
    """The same of the path of nearly every request, which the batches above do not take."""
    case = make_case(one_stage("plain"), num_tokens=30, hidden_size=40, dtype=dtype, max_steps=2)
    before, dropped = counted(case, plain_path)
    assert dropped == 0
    broken = torch.arange(30) % 3 == 0
    case.hidden[broken, 5] = value
    active = case.tokens()
    after, dropped = counted(case, plain_path)
    assert dropped == int((broken & active).sum()) > 0
    assert torch.equal(after[broken].nan_to_num(), case.hidden[broken].nan_to_num())
    assert torch.allclose(after[~broken].float(), before[~broken].float(), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_steps_that_overflow_are_dropped_and_counted(plain_path, dtype):
    """Every token is finite, one row's s is not."""
    case = make_case(one_stage("plain"), num_tokens=30, hidden_size=40, dtype=dtype, max_steps=2)
    before, dropped = counted(case, plain_path)
    assert dropped == 0
    case.rows.strength[case.layer, 0] = 3e38
    case.rows.readout[case.layer, 0] *= 1e30
    overflows = case.token_row[0, :30] == 0
    after, dropped = counted(case, plain_path)
    assert dropped == int(overflows.sum()) > 0
    assert torch.equal(after[overflows], case.hidden[overflows])
    assert torch.allclose(after[~overflows].float(), before[~overflows].float(), atol=1e-4)


def test_plain_steps_of_one_broken_token(plain_path):
    """The path of nearly every request: neighbours in the group keep every bit of their edit."""
    case = make_case(one_stage("plain"), num_tokens=12, hidden_size=48, max_steps=3)
    plain, dropped = counted(case, plain_path)
    assert dropped == 0
    case.hidden[4, 7] = float("inf")
    case.token_row[0, 4] = 0
    after, dropped = counted(case, plain_path)
    assert dropped == 1
    others = torch.arange(12) != 4
    assert torch.equal(after[4].nan_to_num(), case.hidden[4].nan_to_num())
    assert torch.allclose(
        after[others], plain[others], atol=1e-5
    )  # torch's products: another group, another order
