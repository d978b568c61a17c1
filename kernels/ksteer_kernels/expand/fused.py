"""Triton: turn hidden-space coefficients into the edit of the residual stream."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ksteer_kernels.device import (
    ADD,
    FLOAT32_DOT,
    active_rows,
    dot_half,
    is_half,
    round_to,
    slot_range,
    token_block,
)
from ksteer_kernels.expand.naive import edit_limit
from ksteer_kernels.tables import ProbeTables, RowTables


@triton.jit
def subtract_directions(
    hidden,
    coefficients,
    directions,
    count,
    mine,
    wide,
    at,
    hidden_size,
    hidden_stride,
    coefficient_width,
    LIMIT: tl.constexpr,
    SPLIT_DOT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """hidden[mine, at] -= coefficients[mine, :count] @ directions[:count, at]."""
    acc = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    inside = (at < hidden_size)[None, :]
    for k in range(0, count, BLOCK_K):
        units = k + tl.arange(0, BLOCK_K)
        c = tl.load(
            coefficients + wide[:, None] * coefficient_width + units[None, :],
            mask=mine[:, None] & (units < count)[None, :],
            other=0.0,
        )
        u = tl.load(
            directions + units[:, None] * hidden_size + at[None, :],
            mask=(units < count)[:, None] & inside,
            other=0.0,
        )
        if SPLIT_DOT:
            # Two bfloat16 parts carry 16 bits of s; their products with bfloat16 weights are exact.
            high = round_to(c, tl.bfloat16)
            low = round_to(c - high.to(tl.float32), tl.bfloat16)
            acc = dot_half(low, u, acc)
            acc = dot_half(high, u, acc)
        else:
            acc = tl.dot(c, u.to(tl.float32), acc, input_precision=PRECISION)
    there = mine[:, None] & inside
    target = hidden + wide[:, None] * hidden_stride + at[None, :]
    old = tl.load(target, mask=there, other=0.0).to(tl.float32)
    # As expand.naive.bounded_edit: within the limit, or where the entry was; only finite edits are written.
    new = tl.minimum(tl.maximum(old - acc, tl.minimum(old, -LIMIT)), tl.maximum(old, LIMIT))
    finite = tl.abs(acc) < float("inf")
    # A zero edit keeps the sign of a zero, too.
    new = tl.where(acc == 0.0, old, new)
    tl.store(
        target, round_to(new, hidden.dtype.element_ty), mask=there & finite & (tl.abs(old) < float("inf"))
    )


@triton.jit(do_not_specialize=["row_offset", "num_tokens"])
def expand_kernel(
    hidden,
    coefficients,
    token_row,
    slots,
    programs,
    num_steps,
    strengths,
    w1,
    vectors,
    row_offset,
    num_tokens,
    hidden_size,
    width,
    num_labels,
    hidden_stride,
    coefficient_width,
    LIMIT: tl.constexpr,
    SPLIT_DOT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    _, slot, program = active_rows(
        token_row, slots, programs, num_steps, strengths, row_offset, tokens, num_tokens
    )
    first_slot, slot_count = slot_range(slot)
    wide = tokens.to(tl.int64)
    for i in range(slot_count):
        s = first_slot + i
        # One pass for the rows of w1, one for the label vectors.
        for adding in range(2):
            mine = (slot == s) & ((program == ADD).to(tl.int32) == adding)
            if tl.max(mine.to(tl.int32), axis=0) > 0:
                if adding == 1:
                    directions = vectors + s.to(tl.int64) * num_labels * hidden_size
                    count = num_labels
                else:
                    directions = w1 + s.to(tl.int64) * width * hidden_size
                    count = width
                subtract_directions(
                    hidden,
                    coefficients,
                    directions,
                    count,
                    mine,
                    wide,
                    at,
                    hidden_size,
                    hidden_stride,
                    coefficient_width,
                    LIMIT,
                    SPLIT_DOT,
                    BLOCK_T,
                    BLOCK_D,
                    BLOCK_K,
                    PRECISION,
                )


def expand_(
    hidden: Tensor,
    coefficients: Tensor,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
) -> None:
    """Same contract as `expand.naive.expand_`; the grid depends on the shapes alone."""
    num_tokens, hidden_size = hidden.shape
    block_t = token_block(num_tokens)
    block_d, num_warps = (64, 4) if block_t == 16 else (128, 8)
    expand_kernel[(triton.cdiv(num_tokens, block_t), triton.cdiv(hidden_size, block_d))](
        hidden,
        coefficients,
        token_row,
        rows.slot,
        rows.program,
        rows.num_steps,
        rows.strength,
        probes.w1,
        probes.vectors,
        layer * rows.slot.shape[1],
        num_tokens,
        hidden_size,
        probes.max_width,
        probes.max_labels,
        hidden.stride(0),
        coefficients.stride(0),
        LIMIT=edit_limit(hidden.dtype),
        SPLIT_DOT=is_half(hidden.dtype) and probes.w1.dtype == torch.bfloat16,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        BLOCK_K=32,
        PRECISION=FLOAT32_DOT,
        num_warps=num_warps,
        num_stages=3,
    )
