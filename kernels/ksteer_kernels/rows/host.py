"""The CPU path of `token_rows_`: a handful of NumPy calls on the tensors' own memory."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ksteer_kernels.tables import NO_ROW


def token_rows_(
    out: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    request_rows: Tensor,
    windows: Tensor,
    num_tokens: int,
) -> None:
    """Same contract as `rows.naive.token_rows_`, for tensors in host memory."""
    rows = out.numpy()
    rows[num_tokens:] = NO_ROW
    num_requests = request_rows.shape[0]
    if num_tokens == 0 or num_requests == 0:
        rows[:num_tokens] = NO_ROW
        return
    starts = query_start_loc.numpy()[: num_requests + 1]
    request_row = request_rows.numpy()
    if num_tokens == num_requests and starts[-1] == num_tokens and np.all(np.diff(starts) == 1):
        row = request_row.astype(np.int64)  # decode: one token each
    else:
        first, last = int(starts[0]), min(int(starts[-1]), num_tokens)
        row = np.full(num_tokens, NO_ROW, dtype=np.int64)
        row[first:last] = np.repeat(request_row, np.diff(starts))[: last - first]
    window = windows.numpy()[np.maximum(row, 0)]
    position = positions.numpy()[:num_tokens]
    inside = (window[:, 0] <= position) & (position < window[:, 1])
    inside |= (window[:, 2] <= position) & (position < window[:, 3])
    rows[:num_tokens] = np.where(inside & (row >= 0), row, NO_ROW)
