"""Triton: project the residual stream onto the basis of each token's slot."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ksteer_kernels.device import (
    ADD,
    FLOAT32_DOT,
    active_rows,
    any_of,
    dot_half,
    is_half,
    needs_square,
    slot_range,
    token_block,
)
from ksteer_kernels.settings import RowTables
from ksteer_kernels.shrink.naive import split_length
from ksteer_kernels.tables import ProbeTables
from ksteer_kernels.workspace import NUM_SPLITS


@triton.jit
def project(
    hidden_rows,
    residual_rows,
    weights,
    start,
    end,
    mine,
    units,
    width,
    HAS_RESIDUAL: tl.constexpr,
    HALF_DOT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x[:, start:end] @ weights[:, start:end]^T, [BLOCK_T, BLOCK_H]."""
    columns = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
    for d in range(start, end, BLOCK_D):
        at = d + columns
        there = mine[:, None] & (at < end)[None, :]
        w = tl.load(weights + at[None, :], mask=(units < width)[:, None] & (at < end)[None, :], other=0.0)
        x = tl.load(hidden_rows + at[None, :], mask=there, other=0.0)
        if HALF_DOT:
            # W hidden + W residual: 16-bit products are exact, x need not be rounded.
            acc = dot_half(x, tl.trans(w), acc)
            if HAS_RESIDUAL:
                r = tl.load(residual_rows + at[None, :], mask=there, other=0.0)
                acc = dot_half(r, tl.trans(w), acc)
        else:
            x = x.to(tl.float32)
            if HAS_RESIDUAL:
                x += tl.load(residual_rows + at[None, :], mask=there, other=0.0).to(tl.float32)
            acc = tl.dot(x, tl.trans(w.to(tl.float32)), acc, input_precision=PRECISION)
    return acc


@triton.jit
def sum_squares(
    hidden_rows,
    residual_rows,
    start,
    end,
    mine,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """|x[:, start:end]|^2, [BLOCK_T]."""
    acc = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for d in range(start, end, BLOCK_D):
        at = d + tl.arange(0, BLOCK_D)
        there = mine[:, None] & (at < end)[None, :]
        x = tl.load(hidden_rows + at[None, :], mask=there, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            x += tl.load(residual_rows + at[None, :], mask=there, other=0.0).to(tl.float32)
        acc += x * x
    return tl.sum(acc, axis=1)


@triton.jit(do_not_specialize=["row_offset", "num_tokens"])
def shrink_kernel(
    partial,
    square,
    hidden,
    residual,
    token_row,
    slots,
    programs,
    flags,
    num_steps,
    strengths,
    caps,
    basis,
    sizes,
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
    entry, slot, program = active_rows(
        token_row, slots, programs, num_steps, strengths, row_offset, tokens, num_tokens
    )
    squared = needs_square(caps, flags, entry, slot >= 0)
    slot = tl.where((program == ADD) & (squared == 0), -1, slot)
    first_slot, slot_count = slot_range(slot)
    wide = tokens.to(tl.int64)
    hidden_rows, residual_rows = (
        hidden + wide[:, None] * hidden_stride,
        residual + wide[:, None] * residual_stride,
    )
    group = tl.program_id(2)
    for i in range(slot_count):
        s = first_slot + i
        mine = slot == s
        if any_of(mine):
            slot_width = tl.load(sizes + s * 3)
            if tl.program_id(1) * BLOCK_H < slot_width:
                weights = basis + (s.to(tl.int64) * width + units[:, None]) * hidden_size
                total = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
                for part in range(SPLITS_HERE):
                    start = (group * SPLITS_HERE + part) * split_size
                    end = tl.minimum(start + split_size, hidden_size)
                    total += project(
                        hidden_rows, residual_rows, weights, start, end, mine, units, slot_width,
                        HAS_RESIDUAL, HALF_DOT, BLOCK_T, BLOCK_H, BLOCK_D, PRECISION,
                    )  # fmt: skip
                out = partial + (group.to(tl.int64) * num_tokens + wide[:, None]) * partial_width
                tl.store(out + units[None, :], total, mask=mine[:, None] & (units < slot_width)[None, :])
                measured = mine & squared
                if (tl.program_id(1) == 0) & any_of(measured):
                    length = tl.zeros([BLOCK_T], dtype=tl.float32)
                    for part in range(SPLITS_HERE):
                        start = (group * SPLITS_HERE + part) * split_size
                        end = tl.minimum(start + split_size, hidden_size)
                        length += sum_squares(
                            hidden_rows, residual_rows, start, end, measured, HAS_RESIDUAL, BLOCK_T, BLOCK_D
                        )
                    tl.store(square + group.to(tl.int64) * num_tokens + wide, length, mask=measured)


def shrink_(
    partial: Tensor,
    square: Tensor,
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    entry: int,
) -> None:
    """Same contract as `shrink.naive.shrink_`; the grid depends on the shapes alone."""
    num_tokens, hidden_size = hidden.shape
    block_t = token_block(num_tokens)
    block_h, block_d, num_warps = (64, 64, 4) if block_t == 16 else (128, 32, 8)
    sums, width = partial.shape[0], probes.max_width
    half = is_half(hidden.dtype) and hidden.dtype == probes.basis.dtype
    if residual is not None:
        half = half and residual.dtype == hidden.dtype
    grid = (triton.cdiv(num_tokens, block_t), triton.cdiv(width, block_h), sums)
    shrink_kernel[grid](
        partial,
        square,
        hidden,
        hidden if residual is None else residual,
        token_row,
        rows.slot,
        rows.program,
        rows.flags,
        rows.num_steps,
        rows.strength,
        rows.cap,
        probes.basis,
        probes.sizes,
        entry * rows.num_rows,
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
