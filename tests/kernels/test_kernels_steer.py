"""Both backends against the truth, at odd shapes and with everything mixed."""

import pytest
import torch
from kernel_cases import assert_edit_close, make_case, poisoned_workspace

from ksteer_kernels import Program, Workspace, host, plan_groups, steer_


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(1, 40), (3, 63), (63, 130), (123, 40)])
def test_matches_the_truth(backend, device, dtype, num_tokens, hidden_size):
    case = make_case(num_tokens=num_tokens, hidden_size=hidden_size, dtype=dtype, device=device)
    if num_tokens == 1:
        case.token_row[0] = 0
    assert_edit_close(case, case.run(backend), case.truth())


@pytest.mark.parametrize("program", list(Program))
@pytest.mark.parametrize("with_residual", [True, False])
def test_each_program_alone(backend, device, program, with_residual):
    case = make_case(
        num_tokens=33, hidden_size=63, device=device, programs=(program,), with_residual=with_residual, seed=1
    )
    truth = case.truth()
    assert truth.norm() > 0
    assert_edit_close(case, case.run(backend), truth)


def test_widths_beyond_one_tile(backend, device):
    case = make_case(
        num_tokens=18,
        hidden_size=70,
        device=device,
        widths=((150, 97), (33, 140)),
        max_width=150,
        max_steps=3,
    )
    assert_edit_close(case, case.run(backend), case.truth())


def test_more_labels_than_width(backend, device):
    case = make_case(
        num_tokens=21,
        hidden_size=40,
        device=device,
        widths=((7, 5),),
        max_width=8,
        num_labels=19,
        max_steps=2,
    )
    assert_edit_close(case, case.run(backend), case.truth())


def test_sixty_four_steps(backend, device):
    case = make_case(
        num_tokens=16, hidden_size=40, device=device, programs=(Program.GRADIENT,), widths=((24, 17),),
        max_steps=64,
    )  # fmt: skip
    assert_edit_close(case, case.run(backend), case.truth())


def test_half_weights_under_float32_activations(backend, device):
    case = make_case(num_tokens=35, hidden_size=63, dtype=torch.bfloat16, device=device)
    case.hidden, case.residual = case.hidden.float(), case.residual.float()
    assert_edit_close(case, case.run(backend), case.truth())


@pytest.mark.parametrize("num_tokens", [300, 1030])
def test_prefill_sizes(triton_device, num_tokens):
    case = make_case(
        num_tokens=num_tokens, hidden_size=40, device=triton_device, widths=((20, 20),), max_width=20,
        max_steps=1,
    )  # fmt: skip
    assert_edit_close(case, case.run("triton"), case.run("torch").double().cpu() - case.hidden.double().cpu())


def test_slices_of_larger_buffers(backend, device):
    """Activations may be padded in both directions; nothing outside the slice is touched."""
    case = make_case(num_tokens=40, hidden_size=40, device=device)
    expected = case.run(backend)
    buffer = torch.full((48, 64), float("nan"), device=device)
    buffer[:40, :40] = case.hidden
    view = buffer[:40, :40]
    workspace = poisoned_workspace(case) if backend == "triton" else None
    steer_(
        view, case.residual, case.token_row, case.probes, case.rows, case.layer,
        workspace=workspace, backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(view, expected, rtol=1e-5, atol=1e-6)
    assert torch.isnan(buffer[40:]).all()
    assert torch.isnan(buffer[:, 40:]).all()


def test_a_plan_is_reusable():
    case = make_case(num_tokens=50, hidden_size=40)
    groups = plan_groups(case.token_row, case.rows, case.layer, 50)
    expected = case.run("torch")
    for _ in range(2):
        edited = case.hidden.clone()
        steer_(
            edited, case.residual, case.token_row, case.probes, case.rows, case.layer,
            groups=groups, backend="torch",
        )  # fmt: skip
        assert torch.equal(edited, expected)
    assert plan_groups(torch.full((50,), -1, dtype=torch.int32), case.rows, case.layer, 50) == []


@pytest.mark.parametrize("packed_from_rows", [1, 10**9])
def test_packed_and_plain_products_agree_with_the_truth(monkeypatch, packed_from_rows):
    monkeypatch.setattr(host, "PACKED_FROM_ROWS", packed_from_rows)
    case = make_case(num_tokens=123, hidden_size=63)
    assert_edit_close(case, case.run("torch"), case.truth())


def test_a_reloaded_probe_is_the_one_that_steers(backend, device):
    """Nothing remembered from the probe that was in the slot before."""
    first = make_case(num_tokens=63, hidden_size=40, device=device, seed=1)
    second = make_case(num_tokens=63, hidden_size=40, device=device, seed=2)
    expected = second.run(backend)
    first.run(backend)
    for slot, probe in second.weights.items():
        vectors = second.probes.vectors[slot, :4]
        first.probes.load(slot, w1=probe.w1, b1=probe.b1, w2=probe.w2, b2=probe.b2, vectors=vectors)
    second.probes = first.probes
    assert torch.equal(second.run(backend), expected)


def test_consecutive_tokens_of_one_group():
    """Groups whose tokens are consecutive take another path through the CPU code."""
    case = make_case(num_tokens=20, hidden_size=40)
    case.token_row[:] = torch.arange(23, dtype=torch.int32) // 4
    assert any(group.span for group in plan_groups(case.token_row, case.rows, case.layer, 20))
    assert_edit_close(case, case.run("torch"), case.truth())


def test_errors_say_what_is_wrong(backend, device):
    case = make_case(num_tokens=4, hidden_size=40, device=device)
    arguments = (case.token_row, case.probes, case.rows, case.layer)
    workspace = Workspace.allocate(2, 40, device)
    with pytest.raises(ValueError, match="hidden"):
        steer_(case.hidden[:, :39], None, *arguments, workspace=workspace, backend=backend)
    with pytest.raises(ValueError, match="residual"):
        steer_(case.hidden, case.residual[:3], *arguments, workspace=workspace, backend=backend)
    with pytest.raises(ValueError, match="token_row"):
        steer_(case.hidden, None, case.token_row[:3], *arguments[1:], workspace=workspace, backend=backend)
    with pytest.raises(ValueError, match="backend"):
        steer_(case.hidden, None, *arguments, backend="cuda")
    if backend == "triton":
        with pytest.raises(ValueError, match="workspace"):
            steer_(case.hidden, None, *arguments, backend=backend)
        with pytest.raises(ValueError, match="2 tokens"):
            steer_(case.hidden, None, *arguments, workspace=workspace, backend=backend)
