"""The CPU path of `token_rows_`: a handful of NumPy calls on the tensors' own memory."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ksteer_kernels.settings import NO_ROW, RowTables


def token_rows_(
    out: Tensor,
    gain: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    request_rows: Tensor,
    rows: RowTables,
    num_tokens: int,
) -> None:
    """Same contract as `rows.naive.token_rows_`, for tensors in CPU memory."""
    token_row, left = out.numpy(), gain.numpy()
    token_row[:, num_tokens:] = NO_ROW
    left.fill(1.0)
    num_requests = request_rows.shape[0]
    if num_tokens == 0 or num_requests == 0:
        token_row[:, :num_tokens] = NO_ROW
        return
    starts = query_start_loc.numpy()[: num_requests + 1]
    request_row = request_rows.numpy()
    if num_tokens == num_requests and starts[-1] == num_tokens and np.all(np.diff(starts) == 1):
        row = request_row.astype(np.int64)  # decode: one token each
    else:
        first, last = int(starts[0]), min(int(starts[-1]), num_tokens)
        row = np.full(num_tokens, NO_ROW, dtype=np.int64)
        row[first:last] = np.repeat(request_row, np.diff(starts))[: last - first]
    known = np.maximum(row, 0)
    position = positions.numpy()[:num_tokens]
    window = rows.windows.numpy()[:, known]
    first_window = (window[..., 0] <= position) & (position < window[..., 1])
    inside = first_window | (window[..., 2] <= position) & (position < window[..., 3])
    inside &= row >= 0
    fade = rows.fade.numpy()[:, known]
    if fade[..., 1].any():
        passed = np.maximum(position - fade[..., 0], 0).astype(np.float32)
        faded = np.maximum(np.float32(1) - passed / np.maximum(fade[..., 1], 1).astype(np.float32), 0)
        faded = np.where(fade[..., 1] > 0, faded, np.float32(1))
        inside &= faded > 0
        left[:, :num_tokens] = np.where(inside, faded, np.float32(1))
    divisor = rows.divisor.numpy()[:, known]
    if divisor.any():
        dividing = inside & first_window & (divisor > 1)
        left[:, :num_tokens] /= np.where(dividing, divisor, 1).astype(np.float32)
    token_row[:, :num_tokens] = np.where(inside, row, NO_ROW)
