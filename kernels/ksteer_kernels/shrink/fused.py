"""Triton: project the residual stream onto the first layer of each token's probe."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ksteer_kernels.device import ADD, FLOAT32_DOT, active_rows, dot_half, is_half, slot_range, token_block
from ksteer_kernels.shrink.naive import split_length
from ksteer_kernels.tables import ProbeTables, RowTables
from ksteer_kernels.workspace import NUM_SPLITS


@triton.jit(do_not_specialize=["row_offset", "num_tokens"])
def shrink_kernel(
    partial,
    hidden,
    residual,
    token_row,
    slots,
    programs,
    num_steps,
    strengths,
    w1,
    row_offset,
    num_tokens,
    hidden_size,
    width,
    partial_width,
    hidden_stride,
    residual_stride,
    split_size,
    HAS_RESIDUAL: tl.constexpr,
    HALF_DOT: tl.constexpr,
    SPLITS_HERE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_D)
    _, slot, program = active_rows(
        token_row, slots, programs, num_steps, strengths, row_offset, tokens, num_tokens
    )
    slot = tl.where(program == ADD, -1, slot)
    first_slot, slot_count = slot_range(slot)
    wide = tokens.to(tl.int64)
    for i in range(slot_count):
        s = first_slot + i
        mine = slot == s
        if tl.max(mine.to(tl.int32), axis=0) > 0:
            weights = w1 + (s.to(tl.int64) * width + units[:, None]) * hidden_size
            total = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
            for part in range(SPLITS_HERE):
                start = (tl.program_id(2) * SPLITS_HERE + part) * split_size
                end = tl.minimum(start + split_size, hidden_size)
                acc = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
                for d in range(start, end, BLOCK_D):
                    at = d + columns
                    there = mine[:, None] & (at < end)[None, :]
                    w = tl.load(
                        weights + at[None, :], mask=(units < width)[:, None] & (at < end)[None, :], other=0.0
                    )
                    x = tl.load(hidden + wide[:, None] * hidden_stride + at[None, :], mask=there, other=0.0)
                    if HALF_DOT:
                        # W1 hidden + W1 residual: 16-bit products are exact, x need not be rounded.
                        acc = dot_half(x, tl.trans(w), acc)
                        if HAS_RESIDUAL:
                            r = tl.load(
                                residual + wide[:, None] * residual_stride + at[None, :],
                                mask=there,
                                other=0.0,
                            )
                            acc = dot_half(r, tl.trans(w), acc)
                    else:
                        x = x.to(tl.float32)
                        if HAS_RESIDUAL:
                            r = tl.load(
                                residual + wide[:, None] * residual_stride + at[None, :],
                                mask=there,
                                other=0.0,
                            )
                            x += r.to(tl.float32)
                        acc = tl.dot(x, tl.trans(w.to(tl.float32)), acc, input_precision=PRECISION)
                total += acc
            out = partial + (tl.program_id(2).to(tl.int64) * num_tokens + wide[:, None]) * partial_width
            tl.store(out + units[None, :], total, mask=mine[:, None] & (units < width)[None, :])


def shrink_(
    partial: Tensor,
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
) -> None:
    """Same contract as `shrink.naive.shrink_`; the grid depends on the shapes alone."""
    num_tokens, hidden_size = hidden.shape
    block_t = token_block(num_tokens)
    block_h, block_d, num_warps = (64, 64, 4) if block_t == 16 else (128, 32, 8)
    sums, width = partial.shape[0], probes.max_width
    half = is_half(hidden.dtype) and hidden.dtype == probes.w1.dtype
    if residual is not None:
        half = half and residual.dtype == hidden.dtype
    grid = (triton.cdiv(num_tokens, block_t), triton.cdiv(width, block_h), sums)
    shrink_kernel[grid](
        partial,
        hidden,
        hidden if residual is None else residual,
        token_row,
        rows.slot,
        rows.program,
        rows.num_steps,
        rows.strength,
        probes.w1,
        layer * rows.slot.shape[1],
        num_tokens,
        hidden_size,
        width,
        partial.shape[2],
        hidden.stride(0),
        hidden.stride(0) if residual is None else residual.stride(0),
        split_length(hidden_size),
        HAS_RESIDUAL=residual is not None,
        HALF_DOT=half,
        SPLITS_HERE=NUM_SPLITS // sums,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        PRECISION=FLOAT32_DOT,
        num_warps=num_warps,
        num_stages=3,
    )
