"""Token rows: from requests and their windows to a request row per token."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ksteer_kernels.rows import host, naive

__all__ = ["token_rows_"]


def token_rows_(
    out: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    request_rows: Tensor,
    windows: Tensor,
    num_tokens: int,
    backend: Literal["torch", "triton"],
) -> None:
    """Write the request row of every token into `out`, -1 for an unsteered token. No host sync.

    out: [>= num_tokens] int32; everything from num_tokens on becomes -1.
    positions: [>= num_tokens] int64, absolute position of each token in its request.
    query_start_loc: [>= num_reqs + 1] int32; token t belongs to request i iff
        query_start_loc[i] <= t < query_start_loc[i + 1].
    request_rows: [num_reqs] int32 or int64, the row of each request, -1 for one that is not steered.
    windows: [R, 4] int64, see RowTables.windows.
    Raises ValueError when the shapes do not fit or the backend is unknown.
    """
    if num_tokens < 0 or num_tokens > out.shape[0] or num_tokens > positions.shape[0]:
        raise ValueError(
            f"num_tokens: {num_tokens} does not fit out {out.shape[0]} and positions {positions.shape[0]}"
        )
    if query_start_loc.shape[0] < request_rows.shape[0] + 1:
        raise ValueError(
            f"query_start_loc: {query_start_loc.shape[0]} entries for {request_rows.shape[0]} requests"
        )
    if backend == "torch":
        path = host if out.device.type == "cpu" else naive
        path.token_rows_(out, positions, query_start_loc, request_rows, windows, num_tokens)
    elif backend == "triton":
        from ksteer_kernels.rows import fused

        fused.token_rows_(out, positions, query_start_loc, request_rows, windows, num_tokens)
    else:
        raise ValueError(f"backend: expected 'torch' or 'triton', got {backend!r}")
