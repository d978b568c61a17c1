"""Each step apart: the plain torch of shrink, hidden and expand against the truth, and Triton against it."""

import pytest
import torch
from kernel_cases import Case, assert_edit_close, make_case, one_stage, poisoned_workspace
from test_kernels_stages import conditional

from ksteer_kernels.expand import naive as plain_expand
from ksteer_kernels.groups import active_groups, needs_projection, needs_square
from ksteer_kernels.hidden import naive as plain_hidden
from ksteer_kernels.shrink import naive as plain_shrink
from ksteer_kernels.workspace import NUM_SPLITS, SPLIT_TOKENS, num_partials


def plain_run(case: Case) -> torch.Tensor:
    """All stages by the plain operations over a workspace, as the Triton kernels do it."""
    edited, workspace = case.hidden.clone(), poisoned_workspace(case)
    count, num_stages = len(edited), case.rows.num_stages
    partial, square = workspace.partial_sums(count), workspace.square_sums(count)
    for stage in range(num_stages):
        entry, row = case.layer * num_stages + stage, case.token_row[stage]
        gain = None if case.gain is None else case.gain[stage]
        workspace.coefficients.fill_(float("nan"))
        plain_shrink.shrink_(partial, square, edited, case.residual, row, case.probes, case.rows, entry)
        plain_hidden.hidden_(workspace, partial, square, row, gain, case.probes, case.rows, entry)
        s, keep = workspace.coefficients, workspace.keep
        plain_expand.expand_(edited, case.residual, s, keep, row, case.probes, case.rows, entry)
    return edited


@pytest.mark.parametrize("rows", [one_stage(), conditional])
@pytest.mark.parametrize(("dtype", "num_tokens"), [(torch.float32, 123), (torch.bfloat16, 63)])
def test_plain_operations_match_the_truth(rows, dtype, num_tokens):
    case = make_case(
        rows, num_tokens=num_tokens, hidden_size=40, dtype=dtype, with_gain=True, max_steps=3, seed=4
    )
    if rows is conditional:  # more than one rounding: see test_stages_are_edits_one_after_the_other
        torch.testing.assert_close(plain_run(case), case.run("torch"), rtol=2**-6, atol=1e-5)
    else:
        assert_edit_close(case, plain_run(case), case.truth())


def test_splits_cover_every_column_once():
    for hidden_size in (1, 40, 64, 130, 576, 4096, 5000):
        covered = [c for a, b in plain_shrink.split_bounds(hidden_size) for c in range(a, b)]
        assert covered == list(range(hidden_size))
    assert num_partials(SPLIT_TOKENS) == NUM_SPLITS
    assert num_partials(SPLIT_TOKENS + 1) == 1


def shrink_arguments(case: Case):
    return (case.hidden, case.residual, case.token_row[0], case.probes, case.rows, case.layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shrink(triton_device, dtype):
    from ksteer_kernels.shrink import fused

    case = make_case(num_tokens=63, hidden_size=600, dtype=dtype, device=triton_device)
    results = []
    for shrink_ in (plain_shrink.shrink_, fused.shrink_):
        workspace = poisoned_workspace(case)
        partial, square = workspace.partial_sums(63), workspace.square_sums(63)
        shrink_(partial, square, *shrink_arguments(case))
        results.append((partial, square))
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert torch.isnan(expected).any(), "what nobody asked for is left alone"
        assert not torch.isnan(expected).all()


def test_partial_sums_add_up_the_same_way(triton_device):
    """One program doing all splits leaves the very total that hidden would have summed up."""
    from ksteer_kernels.shrink import fused

    case = make_case(one_stage("bounded"), num_tokens=20, hidden_size=600, device=triton_device)
    split, splits = (
        torch.zeros(NUM_SPLITS, 20, 40).to(triton_device),
        torch.zeros(NUM_SPLITS, 20).to(triton_device),
    )
    total, totals = torch.zeros(1, 20, 40).to(triton_device), torch.zeros(1, 20).to(triton_device)
    fused.shrink_(split, splits, *shrink_arguments(case))
    fused.shrink_(total, totals, *shrink_arguments(case))
    for parts, whole in ((split, total), (splits, totals)):
        summed = parts[0].clone()
        for part in parts[1:]:
            summed += part
        assert whole.any()
        assert torch.equal(summed, whole[0])


def test_what_asks_for_what():
    case = make_case(one_stage("add", "bounded"), num_tokens=1, hidden_size=40)
    row = torch.arange(len(case.plans))
    square = needs_square(case.rows, case.layer, row)
    assert square.tolist() == [False] * 2 + [True] * 7
    assert torch.equal(needs_projection(case.rows, case.layer, row), square)


@pytest.mark.parametrize("rows", [one_stage(), conditional])
def test_hidden(triton_device, rows):
    from ksteer_kernels.hidden import fused

    case = make_case(
        rows, num_tokens=63, hidden_size=130, device=triton_device, max_steps=4, with_gain=True, seed=4
    )
    stages, results = case.rows.num_stages, []
    for hidden_ in (plain_hidden.hidden_, fused.hidden_):
        workspace = poisoned_workspace(case)
        partial, square = workspace.partial_sums(63), workspace.square_sums(63)
        found = []
        for stage in range(stages):
            row, entry = case.token_row[stage], case.layer * stages + stage
            workspace.coefficients.fill_(float("nan"))
            workspace.keep.fill_(float("nan"))
            plain_shrink.shrink_(
                partial, square, case.hidden, case.residual, row, case.probes, case.rows, entry
            )
            hidden_(workspace, partial, square, row, case.gain[stage], case.probes, case.rows, entry)
            found += [workspace.coefficients.clone(), workspace.keep.clone()]
            if stage + 1 < stages:
                found.append(workspace.is_open.clone())
        results.append(found)
    assert torch.isnan(results[0][0]).any(), "inactive tokens are left alone"
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expand(triton_device, dtype):
    from ksteer_kernels.expand import fused

    case = make_case(num_tokens=63, hidden_size=130, dtype=dtype, device=triton_device)
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(63, 40, generator=generator).to(triton_device)
    keep = torch.rand(63, generator=generator).add(0.5).clamp(max=1).to(triton_device)
    results = []
    for expand_ in (plain_expand.expand_, fused.expand_):
        hidden = case.hidden.clone()
        row = case.token_row[0]
        expand_(hidden, case.residual, coefficients, keep, row, case.probes, case.rows, case.layer)
        results.append(hidden)
    rtol = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=1e-4)


def test_groups_are_of_one_slot_and_program():
    case = make_case(num_tokens=123, hidden_size=40)
    seen = torch.zeros(123)
    for group in active_groups(case.token_row[0], case.rows, case.layer, 123):
        settings = [case.edit_of(int(token)).settings for token in group.tokens]
        assert {(s.slot, s.program) for s in settings} == {(group.slot, group.program)}
        seen[group.tokens] += 1
    assert torch.equal(seen, case.tokens().float())
