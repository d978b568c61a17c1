"""Token rows and what fading leaves, on both backends, against a loop over tokens."""

import numpy as np
import pytest
import torch

from ksteer_kernels import RowTables, token_rows_


def tables(windows, fade, device="cpu", divisor=0):
    """windows: [S][R][4]; fade: [S][R][2]; divisor: [S][R] or one for all."""
    rows = RowTables.allocate(1, len(windows[0]), 1, 1, device, len(windows))
    rows.windows[:] = torch.tensor(windows)
    rows.fade[:] = torch.tensor(fade)
    rows.divisor[:] = torch.tensor(divisor)
    return rows


def expected_rows(size, positions, starts, request_rows, windows, num_tokens, fade, divisor=None):
    """(rows, gains) [S][size]; fractions and quotients in float32, as the tables hold strengths."""
    rows = [[-1] * size for _ in windows]
    gains = [[1.0] * size for _ in windows]
    for stage, (window, fades) in enumerate(zip(windows, fade, strict=True)):
        for i, row in enumerate(request_rows):
            for t in range(starts[i], min(starts[i + 1], num_tokens)):
                if row < 0:
                    continue
                (a, b, c, d), (start, length) = window[row], fades[row]
                inside = a <= positions[t] < b or c <= positions[t] < d
                passed = max(positions[t] - start, 0)
                if inside and (length == 0 or passed < length):
                    rows[stage][t] = row
                    gain = np.float32(1)
                    if length:
                        gain = np.float32(1) - np.float32(passed) / np.float32(length)
                    if divisor and a <= positions[t] < b:
                        gain /= np.float32(max(divisor[stage][row], 1))
                    gains[stage][t] = float(gain)
    return rows, gains


def run(
    backend,
    device,
    size,
    positions,
    starts,
    request_rows,
    windows,
    num_tokens,
    fade=None,
    divisor=0,
    dtype=torch.int32,
):
    """Slices of a larger buffer, as an engine that pads its batches has them."""
    fade = fade or [[[0, 0]] * len(windows[0])] * len(windows)
    out = torch.full((len(windows), size + 5), 12345, dtype=torch.int32, device=device)
    gain = torch.full((len(windows), size + 5), 9.0, device=device)
    token_rows_(
        out[:, :size],
        gain[:, :size],
        torch.tensor(positions, dtype=torch.int64, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(request_rows, dtype=dtype, device=device),
        tables(windows, fade, device, divisor),
        num_tokens,
        backend=backend,
    )
    assert (out[:, size:] == 12345).all()
    assert (gain[:, size:] == 9.0).all()
    return out[:, :size].tolist(), gain[:, :size].tolist()


def rows_of(backend, device, *arguments, **more):
    """The rows of the one stage."""
    return run(backend, device, *arguments, **more)[0][0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_requests", [1, 2, 5, 64])
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("decode", [False, True])
def test_random_batches(backend, device, num_requests, dtype, num_stages, decode):
    generator = torch.Generator().manual_seed(num_requests)

    def ints(low, high, count):
        return torch.randint(low, high, (count,), generator=generator).tolist()

    lengths = [1] * num_requests if decode else ints(1, 9, num_requests)
    first = ints(0, 50, num_requests)
    starts = [0]
    positions = []
    for length, start in zip(lengths, first, strict=True):
        starts.append(starts[-1] + length)
        positions += range(start, start + length)
    num_tokens = starts[-1]
    num_rows = num_requests + 2
    windows = [
        [[a, a + n, b, b + m] for a, n, b, m in zip(*(ints(0, 40, num_rows) for _ in range(4)), strict=True)]
        for _ in range(num_stages)
    ]
    fade = [
        [[a, n if n > 6 else 0] for a, n in zip(ints(0, 30, num_rows), ints(1, 30, num_rows), strict=True)]
        for _ in range(num_stages)
    ]
    request_rows = [
        r if i % 3 else -1
        for i, r in enumerate(torch.randperm(num_rows, generator=generator)[:num_requests].tolist(), 1)
    ]
    divisor = [ints(0, 40, num_rows) for _ in range(num_stages)]
    size = num_tokens + 300
    arguments = (size, positions + [7] * 20, starts, request_rows, windows, num_tokens, fade, divisor)
    assert run(backend, device, *arguments, dtype=dtype) == expected_rows(*arguments)


def test_window_edges(backend, device):
    windows = [[[2, 4, 6, 7]]]
    rows = rows_of(backend, device, 9, list(range(9)), [0, 9], [0], windows, 9)
    assert rows == [-1, -1, 0, 0, -1, -1, 0, -1, -1]


def test_a_fade_falls_linearly_and_then_ends(backend, device):
    rows, gains = run(backend, device, 9, list(range(9)), [0, 9], [0], [[[1, 9, 0, 0]]], 9, [[[3, 4]]])
    assert rows == [[-1, 0, 0, 0, 0, 0, 0, -1, -1]]
    assert gains == [[1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 1.0, 1.0]]


def test_a_divisor_divides_in_the_first_window_alone(backend, device):
    rows, gains = run(backend, device, 6, list(range(6)), [0, 6], [0], [[[1, 3, 3, 5]]], 6, divisor=[[4]])
    assert rows == [[-1, 0, 0, 0, 0, -1]]
    assert gains == [[1.0, 0.25, 0.25, 1.0, 1.0, 1.0]]


def test_each_stage_has_its_own_windows_and_fade(backend, device):
    windows, fade = [[[0, 2, 0, 0]], [[1, 4, 0, 0]]], [[[0, 0]], [[0, 4]]]
    rows, gains = run(backend, device, 4, list(range(4)), [0, 4], [0], windows, 4, fade)
    assert rows == [[0, 0, -1, -1], [-1, 0, 0, 0]]
    assert gains == [[1.0] * 4, [1.0, 0.75, 0.5, 0.25]]


def test_empty_windows_and_far_positions(backend, device):
    far = 2**40
    windows = [[[0, 0, 5, 5], [far, far + 1, 0, 0]]]
    rows = rows_of(backend, device, 3, [5, far, far + 1], [0, 1, 3], [0, 1], windows, 3)
    assert rows == [-1, 1, -1]


def test_padding_is_minus_one(backend, device):
    """Query starts past the last request repeat its end, as engines pad them."""
    windows = [[[0, 100, 0, 0]]]
    rows = rows_of(backend, device, 8, [3, 4, 9, 9], [0, 2, 2, 2], [0, -1, -1], windows, 2)
    assert rows == [0, 0, -1, -1, -1, -1, -1, -1]


def test_requests_without_tokens_are_skipped(backend, device):
    windows = [[[0, 9, 0, 0]] * 3]
    rows = rows_of(backend, device, 4, [0, 1, 2, 0], [0, 0, 2, 2, 3], [0, 1, 2, 0], windows, 3)
    assert rows == [1, 1, 0, -1]


def test_no_tokens_or_no_requests(backend, device):
    windows = [[[0, 9, 0, 0]]]
    assert rows_of(backend, device, 3, [0, 0, 0], [0, 0], [0], windows, 0) == [-1, -1, -1]
    assert rows_of(backend, device, 3, [0, 0, 0], [0], [], windows, 3) == [-1, -1, -1]


def test_torch_path_of_other_devices():
    """`rows.naive` is what "torch" means away from the CPU; here it meets the loop, too."""
    from ksteer_kernels.rows import cpu, naive

    windows, fade = [[[0, 5, 8, 9]] * 2, [[2, 9, 0, 0]] * 2], [[[0, 0]] * 2, [[1, 6]] * 2]
    positions, starts, requests = list(range(9)), [0, 4, 9], [1, 0]
    divisor = [[3, 7], [2, 0]]
    results = []
    for path in (naive, cpu):
        out, gain = torch.zeros(2, 12, dtype=torch.int32), torch.zeros(2, 12)
        path.token_rows_(
            out, gain, torch.tensor(positions), torch.tensor(starts, dtype=torch.int32),
            torch.tensor(requests, dtype=torch.int32), tables(windows, fade, divisor=divisor), 9,
        )  # fmt: skip
        results.append((out.tolist(), gain.tolist()))
    expected = expected_rows(12, positions, starts, requests, windows, 9, fade, divisor)
    assert results == [expected, expected]


def test_errors(backend, device):
    windows = [[[0, 9, 0, 0]]]
    with pytest.raises(ValueError, match="num_tokens"):
        run(backend, device, 3, [0] * 9, [0, 4], [0], windows, 4)
    with pytest.raises(ValueError, match="query_start_loc"):
        run(backend, device, 3, [0] * 9, [0], [0], windows, 3)
    with pytest.raises(ValueError, match="backend"):
        run("numpy", device, 3, [0] * 9, [0, 3], [0], windows, 3)
    out, gain = torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3)
    arguments = (torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int32), torch.zeros(1))
    for wrong in ((out, gain), (out[:1], gain[:1, :2])):
        with pytest.raises(ValueError, match="out and gain"):
            token_rows_(*wrong, *arguments, tables(windows, [[[0, 0]]]), 2, backend=backend)
