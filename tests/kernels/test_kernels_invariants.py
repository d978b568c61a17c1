"""What must hold to the bit: unsteered tokens, rows that do nothing, and rows among other rows."""

import pytest
import torch
from kernel_cases import make_case

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
    case = with_signed_zeros(make_case(num_tokens=63, hidden_size=40, dtype=dtype, device=device))
    steered = torch.tensor([int(r) in case.settings for r in case.token_row[:63]], device=device)
    edited = case.run(backend)
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
        make_case(num_tokens=40, hidden_size=40, device=device, programs=(Program.GRADIENT,))
    )
    table = getattr(case.rows, what)
    table[case.layer] = NO_SLOT if what == "slot" else 0
    assert torch.equal(bits(case.run(backend)), bits(case.hidden))


@pytest.mark.parametrize("program", list(Program))
def test_strength_zero_is_a_bit_exact_no_op(backend, device, program):
    case = with_signed_zeros(
        make_case(num_tokens=40, hidden_size=40, device=device, programs=(program,), dtype=torch.bfloat16)
    )
    case.rows.strength[case.layer] = 0.0
    assert torch.equal(bits(case.run(backend)), bits(case.hidden))


def test_no_gradient_no_edit(backend, device):
    case = make_case(
        num_tokens=40, hidden_size=40, device=device, programs=(Program.GRADIENT, Program.REFLECT)
    )
    case.probes.b2[:] -= 1e6
    assert torch.equal(case.run(backend), case.hidden)


def test_an_empty_slot_edits_nothing(backend, device):
    case = make_case(num_tokens=40, hidden_size=40, device=device)
    case.rows.slot[case.layer] = 0
    assert torch.equal(case.run(backend), case.hidden)


def test_poison_elsewhere_does_not_spread(backend, device):
    """NaN in unsteered tokens, in another slot's weights, and beyond the live rows."""
    case = make_case(num_tokens=63, hidden_size=40, device=device)
    expected = case.run(backend)
    poisoned = torch.tensor([int(r) not in case.settings for r in case.token_row[:63]], device=device)
    case.hidden[poisoned] = float("nan")
    case.residual[poisoned] = float("nan")
    for table in (case.probes.w1, case.probes.w2, case.probes.b1, case.probes.b2, case.probes.gram):
        table[0] = float("nan")
    edited = case.run(backend)
    assert torch.equal(edited[~poisoned], expected[~poisoned])
    assert torch.isnan(edited[poisoned]).all()


def test_a_broken_row_stays_alone(backend, device):
    """A row that overflows, and a probe of NaN, reach none of the neighbours in the same block."""
    case = make_case(num_tokens=48, hidden_size=40, device=device)
    expected = case.run(backend)
    case.rows.strength[case.layer, 0] = float("inf")
    case.probes.w1[2] = float("nan")
    hurt = torch.tensor(
        [int(r) == 0 or case.rows.slot[case.layer, int(r)] == 2 for r in case.token_row[:48]], device=device
    )
    adds = torch.tensor([case.rows.program[case.layer, int(r)] == Program.ADD for r in case.token_row[:48]])
    kept = ~hurt | (adds.to(device) & (case.token_row[:48] != 0))
    edited = case.run(backend)
    torch.testing.assert_close(edited[kept], expected[kept], rtol=1e-6, atol=1e-6)


def test_rows_do_not_depend_on_their_neighbours(backend, device):
    """Removing other rows: to the bit in Triton. Permuting tokens: to rounding, as the torch path and the
    interpreter multiply matrices with BLAS, whose sums depend on the number and the place of a row."""
    case = make_case(num_tokens=63, hidden_size=130, device=device, max_steps=3)
    expected = case.run(backend)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(3)).to(device)
    for chosen in (order, torch.arange(0, 63, 3, device=device)):
        part = make_case(num_tokens=63, hidden_size=130, device=device, max_steps=3)
        part.hidden, part.residual = case.hidden[chosen], case.residual[chosen]
        part.token_row = case.token_row[chosen]
        torch.testing.assert_close(part.run(backend), expected[chosen], rtol=1e-5, atol=1e-5)
    case.token_row[:63][order[:50]] = -1
    kept = torch.ones(63, dtype=torch.bool, device=device)
    kept[order[:50]] = False
    edited = case.run(backend)
    torch.testing.assert_close(edited[kept], expected[kept], rtol=1e-5, atol=1e-5)
    assert backend == "torch" or torch.equal(edited[kept], expected[kept])
    assert torch.equal(edited[~kept], case.hidden[~kept])


def test_residual_and_tables_are_read_only(backend, device):
    case = make_case(num_tokens=30, hidden_size=40, device=device)
    watched = [case.residual, case.token_row, case.probes.w1, case.probes.gram, case.rows.readout]
    before = [tensor.clone() for tensor in watched]
    case.run(backend)
    for tensor, copy in zip(watched, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num())
