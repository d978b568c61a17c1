"""Triton: turn a program's coefficients into the edit of the residual stream."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ksteer_kernels.device import (
    CONDITION,
    FLOAT32_DOT,
    active_rows,
    any_of,
    dot_half,
    is_half,
    round_to,
    slot_range,
    token_block,
)
from ksteer_kernels.expand.naive import edit_limit
from ksteer_kernels.settings import RowTables
from ksteer_kernels.tables import ProbeTables


@triton.jit
def combine_basis(
    coefficients,
    basis,
    width,
    mine,
    wide,
    at,
    hidden_size,
    coefficient_width,
    SPLIT_DOT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """coefficients[mine, :width] @ basis[:width, at], [BLOCK_T, BLOCK_D]."""
    acc = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for k in range(0, width, BLOCK_K):
        units = k + tl.arange(0, BLOCK_K)
        c = tl.load(
            coefficients + wide[:, None] * coefficient_width + units[None, :],
            mask=mine[:, None] & (units < width)[None, :],
            other=0.0,
        )
        u = tl.load(
            basis + units[:, None] * hidden_size + at[None, :],
            mask=(units < width)[:, None] & (at < hidden_size)[None, :],
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
    return acc


@triton.jit(do_not_specialize=["row_offset", "num_tokens"])
def expand_kernel(
    hidden,
    residual,
    coefficients,
    keep,
    token_row,
    slots,
    programs,
    num_steps,
    strengths,
    basis,
    up_slots,
    column_scales,
    sizes,
    row_offset,
    num_tokens,
    hidden_size,
    width,
    hidden_stride,
    residual_stride,
    coefficient_width,
    HAS_RESIDUAL: tl.constexpr,
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
    slot = tl.where(program == CONDITION, -1, slot)
    first_slot, slot_count = slot_range(slot)
    wide = tokens.to(tl.int64)
    kept = tl.load(keep + tokens, mask=slot >= 0, other=1.0)
    for i in range(slot_count):
        s = first_slot + i
        mine = slot == s
        if any_of(mine):
            up_slot = tl.load(up_slots + s).to(tl.int64)
            edit = combine_basis(
                coefficients, basis + up_slot * width * hidden_size, tl.load(sizes + s * 3),
                mine, wide, at, hidden_size, coefficient_width,
                SPLIT_DOT, BLOCK_T, BLOCK_D, BLOCK_K, PRECISION,
            )  # fmt: skip
            scale = column_scales + s.to(tl.int64) * hidden_size + at
            edit *= tl.load(scale, mask=at < hidden_size, other=1.0)[None, :]
            there = mine[:, None] & (at < hidden_size)[None, :]
            target = hidden + wide[:, None] * hidden_stride + at[None, :]
            old = tl.load(target, mask=there, other=0.0).to(tl.float32)
            scaled = mine & (kept != 1.0)
            if any_of(scaled):
                x = old
                if HAS_RESIDUAL:
                    more = residual + wide[:, None] * residual_stride + at[None, :]
                    x += tl.load(more, mask=there, other=0.0).to(tl.float32)
                share = kept[:, None]
                edit = tl.where(scaled[:, None], share * edit + (1.0 - share) * x, edit)
            # As expand.naive.bounded_edit: within the limit, or where the entry was; only finite edits are
            # written.
            new = tl.minimum(tl.maximum(old - edit, tl.minimum(old, -LIMIT)), tl.maximum(old, LIMIT))
            finite = (tl.abs(edit) < float("inf")) & (tl.abs(old) < float("inf"))
            # A zero edit keeps the sign of a zero, too.
            new = tl.where(edit == 0.0, old, new)
            tl.store(target, round_to(new, hidden.dtype.element_ty), mask=there & finite)


def expand_(
    hidden: Tensor,
    residual: Tensor | None,
    coefficients: Tensor,
    keep: Tensor,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    entry: int,
) -> None:
    """Same contract as `expand.naive.expand_`; the grid depends on the shapes alone."""
    num_tokens, hidden_size = hidden.shape
    block_t = token_block(num_tokens)
    block_d, num_warps = (64, 4) if block_t == 16 else (128, 8)
    expand_kernel[(triton.cdiv(num_tokens, block_t), triton.cdiv(hidden_size, block_d))](
        hidden,
        hidden if residual is None else residual,
        coefficients,
        keep,
        token_row,
        rows.slot,
        rows.program,
        rows.num_steps,
        rows.strength,
        probes.basis,
        probes.up_slot,
        probes.column_scale,
        probes.sizes,
        entry * rows.num_rows,
        num_tokens,
        hidden_size,
        probes.max_width,
        hidden.stride(0),
        hidden.stride(0) if residual is None else residual.stride(0),
        coefficients.stride(0),
        HAS_RESIDUAL=residual is not None,
        LIMIT=edit_limit(hidden.dtype),
        SPLIT_DOT=is_half(hidden.dtype) and probes.basis.dtype == torch.bfloat16,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        BLOCK_K=32,
        PRECISION=FLOAT32_DOT,
        num_warps=num_warps,
        num_stages=3,
    )
