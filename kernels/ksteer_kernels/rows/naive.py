"""Plain torch: which request row steers each token in each stage, and what is left of its strength."""

from __future__ import annotations

import torch
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
    """Reference of `ksteer_kernels.rows.token_rows_`; works on any device without waiting for it."""
    out.fill_(NO_ROW)
    gain.fill_(1.0)
    num_requests = request_rows.shape[0]
    if num_tokens == 0 or num_requests == 0:
        return
    ends = query_start_loc[1 : num_requests + 1].to(torch.int64)
    tokens = torch.arange(num_tokens, device=out.device)
    request = torch.searchsorted(ends, tokens, right=True)
    owned = (request < num_requests) & (tokens >= query_start_loc[0])
    row = request_rows[request.clamp(max=num_requests - 1)].to(torch.int64)
    position = positions[:num_tokens]
    window = rows.windows[:, row.clamp(min=0)]
    first = (window[..., 0] <= position) & (position < window[..., 1])
    second = (window[..., 2] <= position) & (position < window[..., 3])
    fade = rows.fade[:, row.clamp(min=0)]
    start, length = fade[..., 0], fade[..., 1]
    passed = (position - start).clamp(min=0).float() / length.clamp(min=1).float()
    left = torch.where(length > 0, (1.0 - passed).clamp(min=0.0), 1.0)
    divisor = rows.divisor[:, row.clamp(min=0)].clamp(min=1)
    left = left / torch.where(first, divisor, 1).float()
    steered = owned & (row >= 0) & (first | second) & (left > 0)
    out[:, :num_tokens] = torch.where(steered, row, NO_ROW).to(out.dtype)
    gain[:, :num_tokens] = torch.where(steered, left, 1.0)
