"""Triton: the programs that run in the hidden space of a probe, one program instance per block of tokens.

Every [tokens, H] quantity lives in the workspace and is written and read back in chunks, with a barrier
between, so registers and shared memory hold one chunk at a time whatever H is.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ksteer_kernels.device import (
    ADD,
    FLOAT32_DOT,
    GRADIENT,
    REFLECT,
    active_rows,
    slot_range,
    token_block,
)
from ksteer_kernels.tables import ProbeTables, RowTables
from ksteer_kernels.workspace import Workspace


@triton.jit
def multiply_chunk(
    left,
    matrix,
    row_stride,
    column_stride,
    mine,
    units,
    width,
    RELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns `units` of left @ matrix, [BLOCK_T, BLOCK_N].

    left: [BLOCK_T, 1] row pointers into the workspace; matrix[k, n] is at k * row_stride + n * column_stride.
    """
    acc = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
    for k in range(0, width, BLOCK_K):
        inner = k + tl.arange(0, BLOCK_K)
        a = tl.load(left + inner[None, :], mask=mine[:, None] & (inner < width)[None, :], other=0.0)
        if RELU:
            a = tl.maximum(a, 0.0)
        b = tl.load(
            matrix + inner[:, None] * row_stride + units[None, :] * column_stride,
            mask=(inner < width)[:, None] & (units < width)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["row_offset", "num_tokens"])
def hidden_kernel(  # noqa: PLR0912, PLR0915
    coefficients,
    pre_activation,
    upper,
    step,
    partial,
    token_row,
    slots,
    programs,
    num_steps,
    strengths,
    decays,
    readouts,
    b1,
    w2,
    b2,
    gram,
    row_offset,
    num_tokens,
    width,
    num_labels,
    workspace_width,
    readout_width,
    NUM_SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    entry, slot, program = active_rows(
        token_row, slots, programs, num_steps, strengths, row_offset, tokens, num_tokens
    )
    active = slot >= 0
    strength = tl.load(strengths + entry, mask=active, other=0.0)
    decay = tl.load(decays + entry, mask=active, other=0.0)
    # The reflection looks at the gradient once.
    steps = tl.load(num_steps + entry, mask=active & (program == GRADIENT), other=1)
    rows = tokens.to(tl.int64)[:, None] * workspace_width
    readout = readouts + entry.to(tl.int64)[:, None] * readout_width
    chunk = tl.arange(0, BLOCK_N)

    adding = active & (program == ADD)
    if tl.max(adding.to(tl.int32), axis=0) > 0:
        for n in range(0, num_labels, BLOCK_N):
            labels = n + chunk
            there = adding[:, None] & (labels < num_labels)[None, :]
            weight = tl.load(readout + labels[None, :], mask=there, other=0.0)
            tl.store(coefficients + rows + labels[None, :], -strength[:, None] * weight, mask=there)

    slot = tl.where(program == ADD, -1, slot)
    first_slot, slot_count = slot_range(slot)
    for i in range(slot_count):
        s = first_slot + i
        mine = slot == s
        if tl.max(mine.to(tl.int32), axis=0) > 0:
            reflecting = mine & (program == REFLECT)
            bias1, bias2 = b1 + s * width, b2 + s * width
            w2_slot, gram_slot = w2 + s.to(tl.int64) * width * width, gram + s.to(tl.int64) * width * width
            # z1 = p + b1; s starts at 0, but holds p = W1 x where the reflection will need it.
            for n in range(0, width, BLOCK_N):
                units = n + chunk
                there = mine[:, None] & (units < width)[None, :]
                p = tl.load(partial + rows + units[None, :], mask=there, other=0.0)
                for part in tl.static_range(1, NUM_SUMS):
                    offset = rows + (num_tokens * part).to(tl.int64) * workspace_width
                    p += tl.load(partial + offset + units[None, :], mask=there, other=0.0)
                bias = tl.load(bias1 + units, mask=units < width, other=0.0)
                tl.store(pre_activation + rows + units[None, :], p + bias[None, :], mask=there)
                held = tl.where(reflecting[:, None], p, 0.0)
                tl.store(coefficients + rows + units[None, :], held, mask=there)
            tl.debug_barrier()

            last = tl.max(tl.where(mine, steps, 0), axis=0)
            any_reflecting = tl.max(reflecting.to(tl.int32), axis=0) > 0
            size = tl.where(reflecting, 1.0, strength)
            square = tl.zeros([BLOCK_T], dtype=tl.float32)
            product = tl.zeros([BLOCK_T], dtype=tl.float32)
            for t in range(last):
                now = tl.where(mine & (t < steps), size, 0.0)
                # upper = 1[z2 > 0] * u * step size
                for n in range(0, width, BLOCK_N):
                    units = n + chunk
                    there = mine[:, None] & (units < width)[None, :]
                    z2 = multiply_chunk(
                        pre_activation + rows, w2_slot, 1, width, mine, units, width,
                        True, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                    )  # fmt: skip
                    z2 += tl.load(bias2 + units, mask=units < width, other=0.0)[None, :]
                    u = tl.load(readout + units[None, :], mask=there, other=0.0) * now[:, None]
                    tl.store(upper + rows + units[None, :], tl.where(z2 > 0.0, u, 0.0), mask=there)
                tl.debug_barrier()
                # step = 1[z1 > 0] * (W2^T upper); s += step
                for n in range(0, width, BLOCK_N):
                    units = n + chunk
                    there = mine[:, None] & (units < width)[None, :]
                    g1 = multiply_chunk(
                        upper + rows, w2_slot, width, 1, mine, units, width,
                        False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                    )  # fmt: skip
                    z1 = tl.load(pre_activation + rows + units[None, :], mask=there, other=0.0)
                    g1 = tl.where(z1 > 0.0, g1, 0.0)
                    tl.store(step + rows + units[None, :], g1, mask=there)
                    summed = there & (program == GRADIENT)[:, None]
                    total = tl.load(coefficients + rows + units[None, :], mask=summed, other=0.0)
                    tl.store(coefficients + rows + units[None, :], total + g1, mask=summed)
                tl.debug_barrier()
                # z1 -= G step; the reflection's v.v and x.v on the way
                if (t + 1 < last) | (any_reflecting & (t == 0)):
                    for n in range(0, width, BLOCK_N):
                        units = n + chunk
                        there = mine[:, None] & (units < width)[None, :]
                        moved = multiply_chunk(
                            step + rows, gram_slot, 1, width, mine, units, width,
                            False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                        )  # fmt: skip
                        z1 = tl.load(pre_activation + rows + units[None, :], mask=there, other=0.0)
                        tl.store(pre_activation + rows + units[None, :], z1 - moved, mask=there)
                        if any_reflecting & (t == 0):
                            held = there & reflecting[:, None]
                            g1 = tl.load(step + rows + units[None, :], mask=held, other=0.0)
                            p = tl.load(coefficients + rows + units[None, :], mask=held, other=0.0)
                            square += tl.sum(g1 * moved, axis=1)
                            product += tl.sum(g1 * p, axis=1)
                    tl.debug_barrier()
                # s = factor (x.v)/(v.v) g1, and 0 where v.v is not positive
                if any_reflecting & (t == 0):
                    defined = square > 0.0
                    beta = tl.where(defined, strength * product / tl.where(defined, square, 1.0), 0.0)
                    for n in range(0, width, BLOCK_N):
                        units = n + chunk
                        held = reflecting[:, None] & (units < width)[None, :]
                        g1 = tl.load(step + rows + units[None, :], mask=held, other=0.0)
                        s_new = tl.where(defined[:, None], beta[:, None] * g1, 0.0)
                        tl.store(coefficients + rows + units[None, :], s_new, mask=held)
                    tl.debug_barrier()
                size = size * decay
            # A token whose s is not finite is not edited.
            bad = tl.zeros([BLOCK_T], dtype=tl.int32)
            for n in range(0, width, BLOCK_N):
                units = n + chunk
                there = mine[:, None] & (units < width)[None, :]
                total = tl.load(coefficients + rows + units[None, :], mask=there, other=0.0)
                bad = tl.maximum(bad, tl.max(1 - (tl.abs(total) < float("inf")).to(tl.int32), axis=1))
            if tl.max(bad, axis=0) > 0:
                for n in range(0, width, BLOCK_N):
                    units = n + chunk
                    dropped = (mine & (bad > 0))[:, None] & (units < width)[None, :]
                    tl.store(coefficients + rows + units[None, :], 0.0, mask=dropped)


def hidden_(
    workspace: Workspace,
    partial: Tensor,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
) -> None:
    """Same contract as `hidden.naive.hidden_`; one program per block of tokens."""
    sums, num_tokens, _ = partial.shape
    block_t = token_block(num_tokens)
    hidden_kernel[(triton.cdiv(num_tokens, block_t),)](
        workspace.coefficients,
        workspace.pre_activation,
        workspace.upper,
        workspace.step,
        partial,
        token_row,
        rows.slot,
        rows.program,
        rows.num_steps,
        rows.strength,
        rows.decay,
        rows.readout,
        probes.b1,
        probes.w2,
        probes.b2,
        probes.gram,
        layer * rows.slot.shape[1],
        num_tokens,
        probes.max_width,
        probes.max_labels,
        workspace.width,
        rows.readout.shape[2],
        NUM_SUMS=sums,
        BLOCK_T=block_t,
        BLOCK_N=128 if block_t == 16 else 64,
        BLOCK_K=32,
        PRECISION=FLOAT32_DOT,
        num_warps=8,
        num_stages=3,
    )
