"""The native CPU kernel against the float64 truth, against torch, and against itself."""

import logging
from collections.abc import Iterator

import pytest
import torch
from kernel_cases import Case, assert_edit_close, make_case
from kernel_metric_edits import METRICS, metric_probe
from kernel_probe_edits import gradient, load_probe

from ksteer_kernels import SlotWeights, native

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _forget_the_kernel() -> Iterator[None]:
    """Whether there is a kernel is found out once per process; here once per test."""
    native.gradient_kernel.cache_clear()
    yield
    native.gradient_kernel.cache_clear()


@pytest.fixture
def kernel() -> native.Kernel:
    found = native.gradient_kernel()
    if found is None:
        pytest.skip("no native kernel: no compiler")
    return found


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both paths of plain gradient steps; the test must have taken the one it was given."""
    if request.param == "torch":
        monkeypatch.setattr(native, "_build", _no_compiler)
    else:
        request.getfixturevalue("kernel")
    ran = count_runs(monkeypatch)
    yield request.param
    assert set(ran) == {request.param == "native"}


def _no_compiler() -> native.Kernel:
    raise RuntimeError("no compiler, for this test")


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the kernel ran, call by call of `native.edit_`."""
    ran: list[bool] = []
    original = native.edit_

    def counted(*args: object) -> int | None:
        dropped = original(*args)  # type: ignore[arg-type]
        ran.append(dropped is not None)
        return dropped

    monkeypatch.setattr(native, "edit_", counted)
    return ran


def case_of(
    num_tokens: int,
    hidden_size: int = 72,
    widths: tuple[int, int] = (40, 24),
    steps: int = 1,
    scattered: bool = False,
    strength: float = 0.7,
    metric: str | None = None,
    **more: object,
) -> Case:
    """One probe and two rows of it, of different steps and decays; scattered: a third of the tokens idles."""

    def rows(maker):
        if metric is None:
            slot, probe, stored = *load_probe(maker, widths), None
        else:
            slot, probe, stored = metric_probe(maker, metric, widths)
        towards, away = maker.label_weights((0,), (1,)), maker.label_weights((2,), ())
        fewer = {"num_steps": max(1, steps // 2), "decay": 0.9, "strength": strength / 2}
        return [
            [gradient(slot, probe, towards, stored, num_steps=steps, strength=strength)],
            [gradient(slot, probe, away, stored, **fewer)],
        ]

    case = make_case(rows, num_tokens=num_tokens, hidden_size=hidden_size, max_width=max(widths), **more)  # type: ignore[arg-type]
    index = torch.arange(num_tokens, dtype=torch.int32)
    case.token_row[0, :num_tokens] = torch.where(index % 3 == 1, -1, index % 2) if scattered else index % 2
    return case


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 17, 33])
@pytest.mark.parametrize(("hidden_size", "widths"), [(72, (40, 24)), (576, (256, 256)), (63, (17, 41))])
def test_matches_the_truth(path, dtype, with_residual, scattered, num_tokens, hidden_size, widths):
    case = case_of(
        num_tokens,
        hidden_size,
        widths,
        steps=2,
        scattered=scattered,
        dtype=dtype,
        with_residual=with_residual,
    )
    edited = case.run("native")
    assert_edit_close(case, edited, case.truth())
    idle = ~case.tokens()
    assert torch.equal(edited[idle], case.hidden[idle])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize(("hidden_size", "widths"), [(72, (40, 24)), (63, (17, 41))])
def test_a_metric_runs_where_no_metric_does(path, metric, steps, hidden_size, widths):
    case = case_of(11, hidden_size, widths, steps=steps, metric=metric, scattered=True)
    assert_edit_close(case, case.run("native"), case.truth())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [1, 8, 64])
@pytest.mark.parametrize("with_gain", [False, True])
def test_steps_decay_and_fade(path, dtype, steps, with_gain):
    case = case_of(17, steps=steps, dtype=dtype, strength=2.0 / steps, with_gain=with_gain, seed=2)
    assert_edit_close(case, case.run("native"), case.truth())


def test_a_deep_input_is_summed_in_parts(path):
    case = case_of(5, hidden_size=2000)
    assert_edit_close(case, case.run("native"), case.truth())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1e30, 3e38])
@pytest.mark.parametrize("steps", [1, 8])
def test_huge_strengths_stay_within_the_limit(path, dtype, strength, steps):
    case = case_of(9, steps=steps, dtype=dtype, strength=strength)
    case.hidden[:, 5] = 2.0**30  # beyond the limit already: moves towards it at most
    edited = case.run("native").float()
    assert torch.isfinite(edited).all()
    assert (edited[:, 5].abs() <= 2.0**30).all()
    edited[:, 5] = 0
    assert (edited.abs() <= 2.0**24).all()
    if strength < 1e38 and steps == 1:
        assert (edited.abs() == 2.0**24).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["hidden", "residual"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_keeps_its_bits(path, dtype, where, value):
    case = case_of(11, dtype=dtype)
    expected = case.run("native")
    getattr(case, where)[::3, 7] = value
    case.hidden[0, 8] = float("nan")
    edited = case.run("native")
    torch.testing.assert_close(edited[::3], case.hidden[::3], rtol=0, atol=0, equal_nan=True)
    if path == "native":  # torch's clamp may change the payload of a NaN
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(edited[::3].view(bits), case.hidden[::3].view(bits))
    sound = torch.arange(11) % 3 != 0
    torch.testing.assert_close(edited[sound], expected[sound])


def test_a_zero_edit_keeps_the_sign_of_zero(kernel):
    case = case_of(4)
    case.rows.readout[:] = 0.0
    case.hidden[:, ::2] = -0.0
    assert torch.equal(case.run("native").view(torch.int32), case.hidden.view(torch.int32))


def test_rows_of_wider_buffers(path):
    case = case_of(12, scattered=True)
    expected = case.run("native")
    buffer = torch.full((12, 100), float("nan"))
    buffer[:, :72] = case.hidden
    wide = torch.full((12, 90), float("nan"))
    wide[:, :72] = case.residual
    case.residual = wide[:, :72]
    case.run_on(buffer[:, :72], "native")
    torch.testing.assert_close(buffer[:, :72], expected)
    assert torch.isnan(buffer[:, 72:]).all()


@pytest.mark.parametrize("steps", [1, 5])
def test_neither_threads_nor_neighbours_change_a_bit(kernel, steps):
    case = case_of(17, 576, (256, 256), steps=steps)
    before = torch.get_num_threads()
    try:
        edited = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            edited.append(case.run("native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(edited[0], edited[1])
    assert torch.equal(edited[0], edited[2])
    alone = case.hidden.clone()
    case.token_row[0, torch.arange(len(case.token_row[0])) != 16] = -1
    case.run_on(alone, "native")
    assert torch.equal(alone[16], edited[0][16])


def test_a_reloaded_slot_is_read_anew(path):
    case, other = case_of(6), case_of(6)
    slot = case.plans[0][0].settings.slot
    case.run("native")
    weights = {
        name: getattr(other.probes, name)[slot] * 0.5
        for name in ("basis", "bias", "matrix", "matrix_bias", "head", "head_bias")
    }
    for probes in (case.probes, other.probes):
        probes.load(slot, SlotWeights(**weights))
    assert torch.equal(case.run("native"), other.run("native"))


@pytest.mark.parametrize("change", ["dtype", "mixed", "strided", "many"])
def test_what_the_kernel_is_not_for_runs_through_torch(kernel, monkeypatch, change):
    ran = count_runs(monkeypatch)
    case = case_of(2000 if change == "many" else 6)
    hidden = case.hidden
    if change == "dtype":
        hidden, case.residual = hidden.half(), case.residual.half()
    elif change == "mixed":
        case.residual = case.residual.bfloat16()
    elif change == "strided":
        hidden = hidden.T.contiguous().T
    case.run_on(hidden, "native")
    assert ran == [False]
    assert not torch.equal(hidden.float(), case.hidden) or hidden is case.hidden


def test_without_a_compiler_torch_is_used_and_says_so_once(monkeypatch, caplog):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no working C++ compiler\nand more")

    from torch._inductor.codecache import CppCodeCache

    monkeypatch.setattr(CppCodeCache, "load", fails)
    case = case_of(8)
    with caplog.at_level(logging.WARNING, logger=native.logger.name):
        for _ in range(3):
            edited = case.run("native")
    assert [record.message for record in caplog.records if record.name == native.logger.name] == [
        "No native CPU kernel, steering runs through torch, which is slower: no working C++ compiler"
    ]
    assert_edit_close(case, edited, case.truth())
