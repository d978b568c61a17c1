"""Token rows: from requests, their windows, fades and divisors to a request row per stage and token."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ksteer_kernels.rows import cpu, naive
from ksteer_kernels.settings import RowTables

__all__ = ["token_rows_"]


def token_rows_(
    out: Tensor,
    gain: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    request_rows: Tensor,
    rows: RowTables,
    num_tokens: int,
    backend: Literal["torch", "triton"],
) -> None:
    """Write every token's request row in each stage into `out`, -1 where it is not steered.

    Never waits for the device.

    Args:
        out: [S, >= num_tokens] int32, written to; everything from num_tokens on becomes -1.
        gain: Like out, float32, written to: the part of the strength that fading leaves, 1 without a fade,
            over the row's divisor in its first window. A token that has faded out altogether is not steered.
        positions: [>= num_tokens] int64, absolute position of each token in its request.
        query_start_loc: [>= num_reqs + 1] int32; token t belongs to request i iff
            query_start_loc[i] <= t < query_start_loc[i + 1].
        request_rows: [num_reqs] int32 or int64, the row of each request, -1 for one that is not steered.
        rows: Windows, fades and divisors of the rows.
        num_tokens: Tokens of the step, without padding.
        backend: Plain torch (NumPy on a CPU), or a Triton kernel.

    Raises:
        ValueError: The shapes do not fit, or the backend is unknown.
    """
    if num_tokens < 0 or num_tokens > out.shape[1] or num_tokens > positions.shape[0]:
        raise ValueError(
            f"num_tokens: {num_tokens} does not fit out {out.shape[1]} and positions {positions.shape[0]}"
        )
    if out.shape[0] != rows.num_stages or gain.shape != out.shape:
        raise ValueError(
            f"out and gain: {tuple(out.shape)} and {tuple(gain.shape)} for {rows.num_stages} stages"
        )
    if query_start_loc.shape[0] < request_rows.shape[0] + 1:
        raise ValueError(
            f"query_start_loc: {query_start_loc.shape[0]} entries for {request_rows.shape[0]} requests"
        )
    if backend == "torch":
        path = cpu if out.device.type == "cpu" else naive
        path.token_rows_(out, gain, positions, query_start_loc, request_rows, rows, num_tokens)
    elif backend == "triton":
        from ksteer_kernels.rows import fused

        fused.token_rows_(out, gain, positions, query_start_loc, request_rows, rows, num_tokens)
    else:
        raise ValueError(f"backend: expected 'torch' or 'triton', got {backend!r}")
