"""What must hold to the bit: unsteered tokens, rows that do nothing, and rows among other rows."""

import pytest
import torch
from kernel_cases import make_case, one_stage
from kernel_methods import METHODS

from ksteer_kernels import NO_SLOT, Program

DTYPES = [torch.float32, torch.bfloat16]


def bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def with_signed_zeros(case):
    """Zeros of both signs and other values whose bits an addition of 0 could change."""
    case.hidden[:, 0], case.hidden[:, 1] = -0.0, 0.0
    return case


@pytest.mark.parametrize("dtype", DTYPES)
def test_unsteered_tokens_keep_their_bits(backend, device, dtype):
    case = with_signed_zeros(
        make_case(num_tokens=63, hidden_size=40, dtype=dtype, device=device, max_steps=2)
    )
    steered, edited = case.tokens(), case.run(backend)
    assert steered.any()
    assert not steered.all()
    assert torch.equal(bits(edited[~steered]), bits(case.hidden[~steered]))
    assert (edited[steered] != case.hidden[steered]).any(dim=1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_one_everywhere(backend, device, dtype):
    case = with_signed_zeros(make_case(num_tokens=40, hidden_size=40, dtype=dtype, device=device))
    case.token_row[:] = -1
    assert torch.equal(bits(case.run(backend)), bits(case.hidden))


@pytest.mark.parametrize("what", ["slot", "strength", "num_steps"])
def test_rows_that_do_nothing_keep_their_bits(backend, device, what):
    case = with_signed_zeros(
        make_case(one_stage("plain", "losses"), num_tokens=40, hidden_size=40, device=device)
    )
    getattr(case.rows, what)[case.layer] = NO_SLOT if what == "slot" else 0
    assert torch.equal(bits(case.run(backend)), bits(case.hidden))


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_is_a_bit_exact_no_op(backend, device, name):
    case = with_signed_zeros(
        make_case(one_stage(name), num_tokens=40, hidden_size=40, device=device, dtype=torch.bfloat16)
    )
    case.rows.strength[case.layer] = 0.0
    assert torch.equal(bits(case.run(backend)), bits(case.hidden))


def test_no_gradient_no_edit(backend, device):
    case = make_case(one_stage("plain", "losses", "reflect"), num_tokens=40, hidden_size=40, device=device)
    case.probes.matrix_bias[:] -= 1e6
    assert torch.equal(case.run(backend), case.hidden)


def test_an_empty_slot_edits_nothing(backend, device):
    case = with_signed_zeros(make_case(num_tokens=63, hidden_size=40, device=device, max_steps=2))
    case.rows.slot[case.layer] = 0
    assert torch.equal(bits(case.run(backend)), bits(case.hidden))


def test_poison_elsewhere_does_not_spread(backend, device):
    """NaN in unsteered tokens, in another slot's weights, and beyond the live rows."""
    case = make_case(num_tokens=63, hidden_size=40, device=device, max_steps=3)
    expected, poisoned = case.run(backend), ~case.tokens()
    case.hidden[poisoned] = float("nan")
    case.residual[poisoned] = float("nan")
    for table in case.probes.tensors().values():
        if table.is_floating_point():
            table[0] = float("nan")
    case.token_row[:, 63:] = 10**6
    edited = case.run(backend)
    assert torch.equal(edited[~poisoned], expected[~poisoned])
    assert torch.isnan(edited[poisoned]).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_broken_row_stays_alone(backend, device, name):
    """A row that overflows reaches none of the neighbours in the same block."""
    case = make_case(one_stage(name, "plain"), num_tokens=48, hidden_size=40, device=device, max_steps=2)
    expected = case.run(backend)
    for table in (case.rows.strength, case.rows.readout, case.rows.scale):
        table[case.layer, 0] = float("inf")
    edited = case.run(backend)
    others = case.token_row[0, :48] != 0
    torch.testing.assert_close(edited[others], expected[others], rtol=1e-6, atol=1e-6)
    assert torch.isfinite(edited).all()


def test_a_broken_slot_stays_alone(backend, device):
    case = make_case(num_tokens=63, hidden_size=40, device=device, max_steps=2)
    expected = case.run(backend)
    case.probes.basis[2] = float("nan")
    case.probes.cpu_slots.clear()
    hurt = case.tokens(lambda edit: edit.settings.slot == 2)
    edited = case.run(backend)
    assert hurt.any()
    torch.testing.assert_close(edited[~hurt], expected[~hurt], rtol=1e-6, atol=1e-6)
    assert torch.equal(bits(edited[hurt]), bits(case.hidden[hurt]))


def test_rows_do_not_depend_on_their_neighbours(backend, device):
    """Removing other rows: to the bit in Triton. Permuting tokens: to rounding, as the torch path and the
    interpreter multiply matrices with BLAS, whose sums depend on the number and the place of a row."""

    def make():
        return make_case(num_tokens=63, hidden_size=130, device=device, max_steps=2)

    case = make()
    expected = case.run(backend)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(3)).to(device)
    for chosen in (order, torch.arange(0, 63, 3, device=device)):
        part = make()
        part.hidden, part.residual = case.hidden[chosen], case.residual[chosen]
        part.token_row = case.token_row[:, chosen]
        torch.testing.assert_close(part.run(backend), expected[chosen], rtol=1e-5, atol=1e-5)
    case.token_row[0, :63][order[:50]] = -1
    kept = torch.ones(63, dtype=torch.bool, device=device)
    kept[order[:50]] = False
    edited = case.run(backend)
    torch.testing.assert_close(edited[kept], expected[kept], rtol=1e-5, atol=1e-5)
    assert backend == "torch" or torch.equal(edited[kept], expected[kept])
    assert torch.equal(edited[~kept], case.hidden[~kept])


def test_residual_and_tables_are_read_only(backend, device):
    case = make_case(num_tokens=63, hidden_size=40, device=device, max_steps=2, with_gain=True)
    watched = [case.residual, case.token_row, case.gain, *case.probes.tensors().values()]
    watched += [table for table in vars(case.rows).values()]
    before = [tensor.clone() for tensor in watched]
    case.run(backend)
    for tensor, copy in zip(watched, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num())


def test_every_program_is_met():
    """The cases of this file say "all methods": together they use every program that edits."""
    plans = make_case(num_tokens=1, hidden_size=40).plans
    assert {plan[0].settings.program for plan in plans} == set(Program) - {Program.CONDITION}
