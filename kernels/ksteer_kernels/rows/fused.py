"""Triton: which request row steers each token in each stage, from device data alone."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ksteer_kernels.settings import RowTables

BLOCK = 256


@triton.jit(do_not_specialize=["num_tokens", "out_size", "num_requests", "search_rounds", "num_rows"])
def token_rows_kernel(
    out,
    gain,
    positions,
    query_start_loc,
    request_rows,
    windows,
    fade,
    divisors,
    num_tokens,
    out_size,
    num_requests,
    search_rounds,
    num_rows,
    out_stride,
    gain_stride,
    BLOCK: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stage = tl.program_id(1)
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
    place = stage.to(tl.int64) * num_rows + row
    window = windows + place * 4
    first = (tl.load(window, mask=has_row, other=0) <= position) & (
        position < tl.load(window + 1, mask=has_row, other=0)
    )
    second = (tl.load(window + 2, mask=has_row, other=0) <= position) & (
        position < tl.load(window + 3, mask=has_row, other=0)
    )
    fade_start = tl.load(fade + place * 2, mask=has_row, other=0)
    length = tl.load(fade + place * 2 + 1, mask=has_row, other=0)
    passed = tl.maximum(position - fade_start, 0).to(tl.float32)
    share = tl.div_rn(passed, tl.maximum(length, 1).to(tl.float32))
    left = tl.where(length > 0, tl.maximum(1.0 - share, 0.0), 1.0)
    divisor = tl.load(divisors + place, mask=has_row & first, other=1)
    left = tl.div_rn(left, tl.maximum(divisor, 1).to(tl.float32))
    steered = has_row & (first | second) & (left > 0.0)
    out_at, gain_at = stage.to(tl.int64) * out_stride + tokens, stage.to(tl.int64) * gain_stride + tokens
    tl.store(out + out_at, tl.where(steered, row, -1), mask=tokens < out_size)
    tl.store(gain + gain_at, tl.where(steered, left, 1.0), mask=tokens < out_size)


def token_rows_(
    out: Tensor,
    gain: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    request_rows: Tensor,
    rows: RowTables,
    num_tokens: int,
) -> None:
    """Same contract as `ksteer_kernels.rows.token_rows_`; one launch, fixed by the sizes alone.

    Raises ValueError when the tokens of a stage are not contiguous.
    """
    (num_stages, out_size), num_requests = out.shape, request_rows.shape[0]
    if out.stride(1) != 1 or gain.stride(1) != 1:
        raise ValueError("out and gain: the last dimension must be contiguous")
    if out_size == 0:
        return
    token_rows_kernel[(triton.cdiv(out_size, BLOCK), num_stages)](
        out,
        gain,
        positions,
        query_start_loc,
        request_rows,
        rows.windows,
        rows.fade,
        rows.divisor,
        num_tokens,
        out_size,
        num_requests,
        num_requests.bit_length(),
        rows.num_rows,
        out.stride(0),
        gain.stride(0),
        BLOCK=BLOCK,
    )
