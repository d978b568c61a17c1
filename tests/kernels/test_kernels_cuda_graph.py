"""One captured graph serves every batch of its size: only device data changes between replays."""

import pytest
import torch
from kernel_cases import assert_edit_close, make_case, one_stage, poisoned_workspace
from test_kernels_stages import conditional, stacks

from ksteer_kernels import ReportBuffers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        (one_stage(), torch.float32),
        (one_stage(), torch.bfloat16),
        (stacks, torch.float32),
        (conditional, torch.float32),
    ],
)
def test_replay_follows_the_rows(rows, dtype):
    case = make_case(rows, num_tokens=63, hidden_size=130, dtype=dtype, device="cuda", with_gain=True)
    start, token_row = case.hidden.clone(), case.token_row.clone()
    workspace = poisoned_workspace(case)
    reports = ReportBuffers.allocate(case.rows.slot.shape[0], 63, case.probes.max_labels, "cuda")
    edited = torch.empty_like(start)

    def step():
        edited.copy_(start)
        case.run_on(edited, "triton", workspace=workspace, reports=reports)

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
        case.token_row.copy_(token_row.roll(shift, dims=1))
        graph.replay()
        assert_edit_close(case, edited, case.truth())
