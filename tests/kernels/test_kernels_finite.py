"""No strength a request can ask for puts a value that is not finite into the residual stream."""

import pytest
import torch
from kernel_cases import make_case, one_stage
from kernel_methods import METHODS

from ksteer_kernels import Program


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
