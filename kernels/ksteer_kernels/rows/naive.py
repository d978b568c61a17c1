"""Plain torch: which request row steers each token."""

from __future__ import annotations

import torch
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
    """Reference of `ksteer_kernels.rows.token_rows_`; works on any device without a host sync."""
    out.fill_(NO_ROW)
    num_requests = request_rows.shape[0]
    if num_tokens == 0 or num_requests == 0:
        return
    ends = query_start_loc[1 : num_requests + 1].to(torch.int64)
    tokens = torch.arange(num_tokens, device=out.device)
    request = torch.searchsorted(ends, tokens, right=True)
    owned = (request < num_requests) & (tokens >= query_start_loc[0])
    row = request_rows[request.clamp(max=num_requests - 1)].to(torch.int64)
    window = windows[row.clamp(min=0)]
    position = positions[:num_tokens]
    first = (window[:, 0] <= position) & (position < window[:, 1])
    second = (window[:, 2] <= position) & (position < window[:, 3])
    steered = owned & (row >= 0) & (first | second)
    out[:num_tokens] = torch.where(steered, row, NO_ROW).to(out.dtype)
