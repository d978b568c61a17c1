"""What an edit with Flag.REPORT did, against the truth, on both backends."""

import math

import pytest
import torch
from kernel_cases import LOGIT_TOLERANCE, make_case, one_stage
from kernel_methods import METHODS
from kernel_metric_edits import METRICS
from kernel_probe_edits import conditions, loss_edits, plain_edits

from ksteer_kernels import Flag, Program, ReportBuffers, plan_groups, steer_groups_
from ksteer_kernels.workspace import DROPPED

NAMES = ("plain", "losses", "reflect", "add", "sae", "bounded")


def reporting(maker):
    return [[edit.flagged(Flag.REPORT)] for name in NAMES for edit in METHODS[name](maker)] + [
        [edit] for edit in plain_edits(maker)
    ]


def under_metrics(maker):
    return [[edit.flagged(Flag.REPORT)] for kind in METRICS for edit in METHODS[kind](maker)]


def conditional(maker):
    """A gate that shuts some tokens out, and an edit after it; both reported."""
    gate, losses, adds = conditions(maker)[0], loss_edits(maker), METHODS["add"](maker)
    gated = Flag.REPORT | Flag.GATED
    return [
        [gate.flagged(Flag.REPORT), losses[0].flagged(gated), adds[0].flagged(Flag.REPORT)],
        [losses[2].flagged(Flag.REPORT), gate, adds[0].bounded(cap=0.01).flagged(gated)],
    ]


def collect(case, backend):
    """(stage, token) -> (shift, steps, before, after) of everything reported."""
    found = {}
    if backend == "torch":
        hidden, is_open = case.hidden.clone(), None
        for stage in range(case.rows.num_stages):
            entry = case.layer * case.rows.num_stages + stage
            groups = plan_groups(case.token_row[stage], case.rows, entry, len(hidden), case.gain[stage])
            records = []
            is_open = steer_groups_(hidden, case.residual, case.probes, groups, is_open, records.append)
            for record in records:
                for i, token in enumerate(record.tokens.tolist()):
                    logits = (None, None) if record.before is None else (record.before[i], record.after[i])
                    found[stage, token] = (float(record.shift[i]), int(record.steps[i]), *logits)
        assert torch.equal(hidden, case.run("torch")), "a report changes nothing"
        return found
    num_tokens, num_stages = len(case.hidden), case.rows.num_stages
    buffers = ReportBuffers.allocate(
        2 * num_stages, num_tokens + 2, case.probes.max_labels, case.hidden.device
    )
    for table in (buffers.steps, buffers.shift, buffers.before, buffers.after):
        table.fill_(77)
    edited = case.run(backend, reports=buffers)
    assert torch.equal(edited, case.run(backend)), "a report changes nothing"
    for stage in range(num_stages):
        entry = case.layer * num_stages + stage
        for token in range(num_tokens):
            shift, steps = float(buffers.shift[entry, token]), int(buffers.steps[entry, token])
            if shift < 0:
                assert steps == -1
                continue
            edit = case.edit_of(token, stage)
            logits = (None, None)
            if edit.probe is not None:
                count = len(edit.probe.b3)
                logits = (buffers.before[entry, token, :count], buffers.after[entry, token, :count])
            found[stage, token] = (shift, steps, *logits)
        assert (buffers.shift[entry, num_tokens:] == 77).all()
    assert (buffers.shift[: case.layer * num_stages] == 77).all()
    return found


@pytest.mark.parametrize("rows", [reporting, conditional])
def test_reports_are_the_truth(backend, device, rows):
    case = make_case(rows, num_tokens=63, hidden_size=63, device=device, with_gain=True, max_steps=5, seed=7)
    assert len({record.steps for record in case.records()}) > 3
    assert_reported(case, backend)


def test_a_reported_length_is_euclidean_under_a_metric(backend, device):
    case = make_case(under_metrics, num_tokens=16, hidden_size=63, device=device, with_gain=True, max_steps=2)
    assert_reported(case, backend)


def assert_reported(case, backend):
    found, expected = collect(case, backend), case.records()
    assert set(found) == {(record.stage, record.token) for record in expected}
    for record in expected:
        shift, steps, before, after = found[record.stage, record.token]
        assert steps == record.steps
        assert shift == pytest.approx(record.shift, rel=1e-3, abs=1e-5)
        assert (before is None) == (record.before is None)
        if before is not None:
            for actual, truth in ((before, record.before), (after, record.after)):
                torch.testing.assert_close(
                    actual.double().cpu(), truth, rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE
                )


def test_nobody_reports_without_the_flag():
    case = make_case(one_stage(), num_tokens=63, hidden_size=63, max_steps=2, with_gain=True)
    assert collect(case, "torch") == {}
    assert case.records() == []


def test_a_dropped_edit_says_so(backend, device):
    """Its shift is NaN and its steps are DROPPED; every other record is as it was."""
    case = make_case(
        reporting, num_tokens=63, hidden_size=63, device=device, with_gain=True, max_steps=3, seed=7
    )
    before = collect_quietly(case, backend)
    broken = {token for _, token in before if token % 5 == 0}
    case.hidden[list(broken), 4] = float("inf")
    after = collect_quietly(case, backend)
    assert set(after) == set(before)
    assert broken
    for (stage, token), (shift, steps, *_) in after.items():
        if token in broken and Flag.REPORT in case.edit_of(token, stage).settings.flags:
            dropped = case.edit_of(token, stage).settings.program != Program.ADD
            assert math.isnan(shift) == dropped
            assert (steps == DROPPED) == dropped
        else:
            assert steps == before[stage, token][1]
            assert shift == pytest.approx(before[stage, token][0], rel=1e-4)  # sums in another order


@pytest.mark.parametrize("name", ["add", "losses", "reflect"])
def test_an_edit_beyond_float32_is_infinite(backend, device, name):
    """Its length, or a part of it that is no number: never the 0 of an edit that did nothing."""

    def rows(maker):
        return [[edit.flagged(Flag.REPORT)] for edit in METHODS[name](maker)]

    case = make_case(rows, num_tokens=40, hidden_size=63, device=device, with_gain=True, max_steps=1, seed=3)
    case.rows.strength[case.layer] = 1e25
    found = collect_quietly(case, backend)
    shifts = [shift for shift, *_ in found.values()]
    assert math.inf in shifts
    assert {shift for shift in shifts if not math.isnan(shift)} <= {0.0, math.inf}
    if backend == "triton":
        on_cpu = make_case(rows, num_tokens=40, hidden_size=63, with_gain=True, max_steps=1, seed=3)
        on_cpu.rows.strength[case.layer] = 1e25
        expected = [shift for shift, *_ in collect_quietly(on_cpu, "torch").values()]
        assert sorted(map(str, shifts)) == sorted(map(str, expected))


def collect_quietly(case, backend):
    """As `collect`, of batches with numbers that equal nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "equal", lambda *_: True)
        return collect(case, backend)
