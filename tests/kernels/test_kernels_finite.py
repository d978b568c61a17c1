"""No strength a request can ask for puts a value that is not finite into the residual stream."""

import pytest
import torch
from kernel_cases import make_case

from ksteer_kernels import Program


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("program", list(Program))
def test_huge_strength_stays_finite_and_to_itself(backend, device, program, dtype):
    case = make_case(num_tokens=40, hidden_size=40, device=device, programs=(program,), dtype=dtype)
    row = next(iter(case.settings))
    before = case.run(backend)
    case.rows.strength[case.layer, row] = 3e38
    case.rows.num_steps[case.layer, row] = 64
    after = case.run(backend)
    others = case.token_row[:40] != row
    assert torch.isfinite(after).all()
    assert not others.all()
    assert torch.equal(after[others], before[others])


def test_a_token_that_is_not_finite_is_left_alone(backend, device):
    case = make_case(num_tokens=40, hidden_size=40, device=device)
    token = next(t for t in range(40) if int(case.token_row[t]) in case.settings)
    before = case.run(backend)
    case.hidden[token, 3] = float("nan")
    after = case.run(backend)
    same = torch.arange(40, device=device) != token
    assert torch.equal(after[token].isnan(), case.hidden[token].isnan())
    assert torch.allclose(after[same], before[same], atol=1e-4)  # a matrix product may sum in another order
