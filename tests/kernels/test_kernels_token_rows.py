"""Token rows on both backends against a loop over tokens."""

import pytest
import torch

from ksteer_kernels import token_rows_


def expected_rows(size, positions, starts, request_rows, windows, num_tokens):
    out = [-1] * size
    for i, row in enumerate(request_rows):
        for t in range(starts[i], min(starts[i + 1], num_tokens)):
            if row >= 0:
                a, b, c, d = windows[row]
                out[t] = row if a <= positions[t] < b or c <= positions[t] < d else -1
    return out


def run(backend, device, size, positions, starts, request_rows, windows, num_tokens, dtype=torch.int32):
    out = torch.full((size,), 12345, dtype=torch.int32, device=device)
    token_rows_(
        out,
        torch.tensor(positions, dtype=torch.int64, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(request_rows, dtype=dtype, device=device),
        torch.tensor(windows, dtype=torch.int64, device=device),
        num_tokens,
        backend=backend,
    )
    return out.tolist()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_requests", [1, 2, 5, 64])
def test_random_batches(backend, device, num_requests, dtype):
    generator = torch.Generator().manual_seed(num_requests)

    def ints(low, high, count):
        return torch.randint(low, high, (count,), generator=generator).tolist()

    lengths = ints(1, 9, num_requests)
    first = ints(0, 50, num_requests)
    starts = [0]
    positions = []
    for length, start in zip(lengths, first, strict=True):
        starts.append(starts[-1] + length)
        positions += range(start, start + length)
    num_tokens = starts[-1]
    num_rows = num_requests + 2
    windows = [
        [a, a + n, b, b + m] for a, n, b, m in zip(*(ints(0, 30, num_rows) for _ in range(4)), strict=True)
    ]
    request_rows = [
        r if i % 3 else -1 for i, r in enumerate(torch.randperm(num_rows)[:num_requests].tolist(), 1)
    ]
    size = num_tokens + 300
    arguments = (size, positions + [7] * 20, starts, request_rows, windows, num_tokens)
    assert run(backend, device, *arguments, dtype=dtype) == expected_rows(*arguments)


def test_window_edges(backend, device):
    windows = [[2, 4, 6, 7]]
    rows = run(backend, device, 9, list(range(9)), [0, 9], [0], windows, 9)
    assert rows == [-1, -1, 0, 0, -1, -1, 0, -1, -1]


def test_empty_windows_and_far_positions(backend, device):
    far = 2**40
    windows = [[0, 0, 5, 5], [far, far + 1, 0, 0]]
    rows = run(backend, device, 3, [5, far, far + 1], [0, 1, 3], [0, 1], windows, 3)
    assert rows == [-1, 1, -1]


def test_padding_is_minus_one(backend, device):
    """Query starts past the last request repeat its end, as hosts pad them."""
    windows = [[0, 100, 0, 0]]
    rows = run(backend, device, 8, [3, 4, 9, 9], [0, 2, 2, 2], [0, -1, -1], windows, 2)
    assert rows == [0, 0, -1, -1, -1, -1, -1, -1]


def test_requests_without_tokens_are_skipped(backend, device):
    windows = [[0, 9, 0, 0], [0, 9, 0, 0], [0, 9, 0, 0]]
    rows = run(backend, device, 4, [0, 1, 2, 0], [0, 0, 2, 2, 3], [0, 1, 2, 0], windows, 3)
    assert rows == [1, 1, 0, -1]


def test_no_tokens_or_no_requests(backend, device):
    assert run(backend, device, 3, [0, 0, 0], [0, 0], [0], [[0, 9, 0, 0]], 0) == [-1, -1, -1]
    assert run(backend, device, 3, [0, 0, 0], [0], [], [[0, 9, 0, 0]], 3) == [-1, -1, -1]


def test_errors(backend, device):
    with pytest.raises(ValueError, match="num_tokens"):
        run(backend, device, 3, [0] * 9, [0, 4], [0], [[0, 9, 0, 0]], 4)
    with pytest.raises(ValueError, match="query_start_loc"):
        run(backend, device, 3, [0] * 9, [0], [0], [[0, 9, 0, 0]], 3)
    with pytest.raises(ValueError, match="backend"):
        run("numpy", device, 3, [0] * 9, [0, 3], [0], [[0, 9, 0, 0]], 3)
