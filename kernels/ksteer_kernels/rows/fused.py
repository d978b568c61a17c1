"""Triton: which request row steers each token, from device data alone."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit(do_not_specialize=["num_tokens", "out_size", "num_requests", "search_rounds"])
def token_rows_kernel(
    out,
    positions,
    query_start_loc,
    request_rows,
    windows,
    num_tokens,
    out_size,
    num_requests,
    search_rounds,
    BLOCK: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < num_tokens
    # Binary search for the number of requests whose end is at or before the token.
    low = tl.zeros([BLOCK], dtype=tl.int32)
    high = tl.zeros([BLOCK], dtype=tl.int32) + num_requests
    for _ in range(search_rounds):
        middle = (low + high) // 2
        searching = inside & (low < high)
        end = tl.load(query_start_loc + middle + 1, mask=searching, other=0)
        before = searching & (end <= tokens)
        high = tl.where(searching & (end > tokens), middle, high)
        low = tl.where(before, middle + 1, low)
    start = tl.load(query_start_loc + low, mask=inside & (low < num_requests), other=0)
    owned = inside & (low < num_requests) & (start <= tokens)
    row = tl.load(request_rows + low, mask=owned, other=-1).to(tl.int32)
    has_row = owned & (row >= 0)
    position = tl.load(positions + tokens, mask=has_row, other=0)
    window = windows + row.to(tl.int64) * 4
    first = (tl.load(window, mask=has_row, other=0) <= position) & (
        position < tl.load(window + 1, mask=has_row, other=0)
    )
    second = (tl.load(window + 2, mask=has_row, other=0) <= position) & (
        position < tl.load(window + 3, mask=has_row, other=0)
    )
    tl.store(out + tokens, tl.where(has_row & (first | second), row, -1), mask=tokens < out_size)


def token_rows_(
    out: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    request_rows: Tensor,
    windows: Tensor,
    num_tokens: int,
) -> None:
    """Same contract as `ksteer_kernels.rows.token_rows_`; one launch, fixed by the sizes alone."""
    out_size, num_requests = out.shape[0], request_rows.shape[0]
    if out_size == 0:
        return
    token_rows_kernel[(triton.cdiv(out_size, BLOCK),)](
        out,
        positions,
        query_start_loc,
        request_rows,
        windows,
        num_tokens,
        out_size,
        num_requests,
        num_requests.bit_length(),
        BLOCK=BLOCK,
    )
