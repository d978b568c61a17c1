"""One captured graph serves every batch of its size: only device data changes between replays."""

import pytest
import torch
from kernel_cases import assert_edit_close, make_case, poisoned_workspace

from ksteer_kernels import steer_

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_follows_the_rows(dtype):
    case = make_case(num_tokens=63, hidden_size=130, dtype=dtype, device="cuda")
    start, rows = case.hidden.clone(), case.token_row.clone()
    workspace = poisoned_workspace(case)
    edited = torch.empty_like(start)

    def step():
        edited.copy_(start)
        steer_(
            edited, case.residual, case.token_row, case.probes, case.rows, case.layer,
            workspace=workspace, backend="triton",
        )  # fmt: skip

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    case.token_row.fill_(-1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    assert torch.equal(edited, start)
    for shift in (0, 7):
        case.token_row.copy_(rows.roll(shift))
        graph.replay()
        assert_edit_close(case, edited, case.truth())
