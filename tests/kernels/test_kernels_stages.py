"""Several edits of one request, one after the other, and conditions between them."""

import pytest
import torch
from kernel_affine_edits import ace_edits, add_edits
from kernel_cases import assert_edit_close, make_case, one_stage
from kernel_methods import METHODS
from kernel_probe_edits import conditions, loss_edits, plain_edits, reflect_edits

from ksteer_kernels import Flag, RowTables, steer_


def stacks(maker):
    """Rows with up to three edits, gaps between them included."""
    steps, losses, adds, aces = plain_edits(maker), loss_edits(maker), add_edits(maker), ace_edits(maker)
    return [
        [steps[0], aces[0], None],
        [adds[0], losses[0], reflect_edits(maker)[0]],
        [None, steps[1].bounded(cap=0.1), adds[1].bounded(preserve=True)],
        [losses[2], None, steps[2]],
        [aces[1], aces[1], aces[2]],
    ]


def conditional(maker):
    """Rows whose edit waits for a condition, in the first and in the second place; one waits for none."""
    steps, adds, aces = plain_edits(maker), add_edits(maker), ace_edits(maker)
    gates = conditions(maker)
    gated = [edit.flagged(Flag.GATED) for edit in (steps[0], adds[0], aces[0].bounded(cap=0.1), adds[1])]
    return [
        *([gate, edit, None] for gate, edit in zip(gates, gated, strict=True)),
        *([steps[2], gate, edit] for gate, edit in zip(gates, gated, strict=True)),
        [adds[0], gated[0], gated[1]],
        [gates[0], None, gated[1]],
        [gates[0], gates[2].flagged(Flag.GATED), gated[1]],
        [gates[2].flagged(Flag.GATED), gated[1], None],
        [gated[2], adds[0], adds[1]],
    ]


@pytest.mark.parametrize("with_gain", [False, True])
@pytest.mark.parametrize("rows", [stacks, conditional])
def test_matches_the_truth(backend, device, rows, with_gain):
    case = make_case(
        rows, num_tokens=63, hidden_size=63, device=device, with_gain=with_gain, max_steps=3, seed=4
    )
    truth = case.truth()
    assert_edit_close(case, case.run(backend), truth)


def test_a_shut_condition_keeps_the_bits(backend, device):
    def rows(maker):
        edits = [edits[0] for edits in (METHODS[name](maker) for name in METHODS)]
        return [[gate, edit.flagged(Flag.GATED)] for gate in conditions(maker)[:2] for edit in edits]

    case = make_case(rows, num_tokens=63, hidden_size=40, device=device, max_steps=3)
    case.hidden[:, 0], case.hidden[:, 1] = -0.0, 0.0
    shut = (case.truth() == 0).all(1).to(device)
    edited = case.run(backend)
    assert 10 < int(shut.sum()) < 53
    assert torch.equal(edited[shut].view(torch.int32), case.hidden[shut].view(torch.int32))
    assert (edited[~shut] != case.hidden[~shut]).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stages_are_edits_one_after_the_other(backend, device, dtype):
    """To the bit: stage two starts from what stage one wrote."""
    case = make_case(stacks, num_tokens=63, hidden_size=63, dtype=dtype, device=device, max_steps=3)
    expected = case.hidden.clone()
    for stage in range(3):
        tables = {name: table[3 + stage : 4 + stage] for name, table in vars(case.rows).items()}
        tables |= {name: getattr(case.rows, name)[:1] for name in ("windows", "fade")}
        single = make_case(one_stage("add"), num_tokens=63, hidden_size=63, dtype=dtype, device=device)
        single.rows, single.probes, single.layer = RowTables(**tables), case.probes, 0
        single.residual, single.token_row = case.residual, case.token_row[stage : stage + 1]
        single.run_on(expected, backend)
    assert torch.equal(case.run(backend), expected)


def test_one_stage_takes_flat_token_rows():
    case = make_case(num_tokens=40, hidden_size=40, with_gain=True)
    edited = case.hidden.clone()
    steer_(
        edited, case.residual, case.token_row[0], case.probes, case.rows, case.layer,
        gain=case.gain[0], backend="torch",
    )  # fmt: skip
    assert torch.equal(edited, case.run("torch"))
