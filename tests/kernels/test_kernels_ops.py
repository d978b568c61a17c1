"""Each Triton kernel against the plain torch of the same signature."""

import pytest
import torch
from kernel_cases import make_case, poisoned_workspace

from ksteer_kernels import Program
from ksteer_kernels.expand import naive as plain_expand
from ksteer_kernels.hidden import naive as plain_hidden
from ksteer_kernels.shrink import naive as plain_shrink
from ksteer_kernels.workspace import NUM_SPLITS, SPLIT_TOKENS, num_partials


def test_splits_cover_every_column_once():
    for hidden_size in (1, 40, 64, 130, 576, 4096, 5000):
        covered = [c for a, b in plain_shrink.split_bounds(hidden_size) for c in range(a, b)]
        assert covered == list(range(hidden_size))
    assert num_partials(SPLIT_TOKENS) == NUM_SPLITS
    assert num_partials(SPLIT_TOKENS + 1) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shrink(triton_device, dtype):
    from ksteer_kernels.shrink import fused

    case = make_case(num_tokens=63, hidden_size=600, dtype=dtype, device=triton_device)
    results = []
    for shrink_ in (plain_shrink.shrink_, fused.shrink_):
        partial = poisoned_workspace(case).partial_sums(63)
        shrink_(partial, case.hidden, case.residual, case.token_row, case.probes, case.rows, case.layer)
        results.append(partial)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.isnan(results[0]).any(), "unsteered tokens are left alone"


def test_partial_sums_add_up_the_same_way(triton_device):
    """One program doing all splits leaves the very total that hidden would have summed up."""
    from ksteer_kernels.shrink import fused

    case = make_case(num_tokens=20, hidden_size=600, device=triton_device, programs=(Program.GRADIENT,))
    arguments = (case.hidden, case.residual, case.token_row, case.probes, case.rows, case.layer)
    split = torch.zeros(NUM_SPLITS, 20, 40, device=triton_device)
    total = torch.zeros(1, 20, 40, device=triton_device)
    fused.shrink_(split, *arguments)
    fused.shrink_(total, *arguments)
    summed = split[0].clone()
    for part in split[1:]:
        summed += part
    assert torch.equal(summed, total[0])


def test_hidden(triton_device):
    from ksteer_kernels.hidden import fused

    case = make_case(num_tokens=63, hidden_size=130, device=triton_device, max_steps=4)
    results = []
    for hidden_ in (plain_hidden.hidden_, fused.hidden_):
        workspace = poisoned_workspace(case)
        partial = workspace.partial_sums(63)
        plain_shrink.shrink_(
            partial, case.hidden, case.residual, case.token_row, case.probes, case.rows, case.layer
        )
        hidden_(workspace, partial, case.token_row, case.probes, case.rows, case.layer)
        results.append(workspace.coefficients)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expand(triton_device, dtype):
    from ksteer_kernels.expand import fused

    case = make_case(num_tokens=63, hidden_size=130, dtype=dtype, device=triton_device)
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(63, 40, generator=generator).to(triton_device)
    results = []
    for expand_ in (plain_expand.expand_, fused.expand_):
        hidden = case.hidden.clone()
        expand_(hidden, coefficients, case.token_row, case.probes, case.rows, case.layer)
        results.append(hidden)
    rtol = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=1e-4)
