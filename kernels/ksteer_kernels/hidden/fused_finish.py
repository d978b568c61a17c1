# mypy: allow-untyped-defs
"""Triton: gate, cap and norm preservation of the tokens of one slot. See `finish.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from ksteer_kernels.device import PRESERVE_NORM, any_of
from ksteer_kernels.hidden.fused_layers import multiply_chunk, projection_chunk, square_of


@triton.jit
def edit_products(
    coefficients,
    partial,
    edit_gram,
    rows,
    mine,
    r,
    num_tokens,
    width,
    workspace_width,
    NUM_SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(|U^T s|^2 = s^T E s, x . U^T s = p . s where U is the basis), [BLOCK_T] each."""
    edit_square = tl.zeros([BLOCK_T], dtype=tl.float32)
    product = tl.zeros([BLOCK_T], dtype=tl.float32)
    for n in range(0, r, BLOCK_N):
        units = n + tl.arange(0, BLOCK_N)
        there = mine[:, None] & (units < r)[None, :]
        es = multiply_chunk(
            coefficients + rows, edit_gram, 1, width, mine, units, r, r,
            False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        s = tl.load(coefficients + rows + units[None, :], mask=there, other=0.0)
        p = projection_chunk(partial, rows, units, there, num_tokens, workspace_width, NUM_SUMS)
        edit_square += tl.sum(s * es, axis=1)
        product += tl.sum(s * p, axis=1)
    return tl.where(edit_square < 0.0, 0.0, edit_square), product  # tl.maximum would make 0 of a NaN


@triton.jit
def finish(
    coefficients,
    keep,
    partial,
    square,
    edit_gram,
    flags,
    caps,
    tokens,
    rows,
    entry,
    mine,
    shut,
    looks,
    r,
    num_tokens,
    width,
    workspace_width,
    NUM_SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Shorten s to the cap, write keep; a token that is shut out, or whose s or p is not finite, gets s = 0.

    looks: whose program has looked at p. Returns those that are not finite, which are dropped, [BLOCK_T].
    """
    chunk = tl.arange(0, BLOCK_N)
    live = mine & (shut == 0)
    cap = tl.load(caps + entry, mask=live, other=float("inf"))
    capped = live & (cap < float("inf"))
    preserved = live & ((tl.load(flags + entry, mask=live, other=0) & PRESERVE_NORM) != 0)
    share = tl.full([BLOCK_T], 1.0, dtype=tl.float32)
    kept = tl.full([BLOCK_T], 1.0, dtype=tl.float32)
    tl.debug_barrier()
    if any_of(capped | preserved):
        bounded = capped | preserved
        edit_square, product = edit_products(
            coefficients, partial, edit_gram, rows, bounded, r, num_tokens, width, workspace_width,
            NUM_SUMS, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        x_square = square_of(square, tokens, bounded, num_tokens, NUM_SUMS)
        room = cap * tl.sqrt_rn(x_square)
        too_long = capped & (edit_square > room * room)
        length = tl.sqrt_rn(tl.where(too_long, edit_square, 1.0))
        share = tl.where(too_long, tl.div_rn(room, length), 1.0)
        moved = x_square - 2 * (share * product) + edit_square * share * share
        scaled = preserved & (moved > 0.0)
        kept = tl.where(scaled, tl.sqrt_rn(tl.div_rn(x_square, tl.where(scaled, moved, 1.0))), 1.0)
    bad = (tl.abs(kept) < float("inf")).to(tl.int32) ^ 1
    for n in range(0, r, BLOCK_N):
        units = n + chunk
        there = live[:, None] & (units < r)[None, :]
        s = tl.load(coefficients + rows + units[None, :], mask=there, other=0.0)
        bad = tl.maximum(bad, tl.max((tl.abs(s) < float("inf")).to(tl.int32) ^ 1, axis=1))
        seen = there & looks[:, None]  # an activation can make a finite s of a p that is not
        p = projection_chunk(partial, rows, units, seen, num_tokens, workspace_width, NUM_SUMS)
        bad = tl.maximum(bad, tl.max((tl.abs(p) < float("inf")).to(tl.int32) ^ 1, axis=1))
    unsound = live & (bad > 0)
    still = (mine & shut) | unsound
    changed = still | (mine & (share != 1.0))
    if any_of(changed):
        for n in range(0, r, BLOCK_N):
            units = n + chunk
            there = changed[:, None] & (units < r)[None, :]
            s = tl.load(coefficients + rows + units[None, :], mask=there & live[:, None], other=0.0)
            s = tl.where(still[:, None], 0.0, s * share[:, None])
            tl.store(coefficients + rows + units[None, :], s, mask=there)
    tl.store(keep + tokens, tl.where(still, 1.0, kept), mask=mine)
    return unsound
