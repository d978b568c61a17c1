# mypy: allow-untyped-defs
"""Triton: gradient steps of the mean loss, and nothing else; what nearly every request asks for.

The tokens are those of `device.is_plain`; `fused_general.py` does the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ksteer_kernels.device import DROPPED, active_rows, any_of, is_plain, slot_range
from ksteer_kernels.hidden.fused_layers import multiply_chunk, projection_chunk


@triton.jit(do_not_specialize=["row_offset", "num_tokens"])
def plain_kernel(  # noqa: PLR0915
    coefficients,
    keep,
    steps_taken,
    num_dropped,
    pre_activation,
    upper,
    step,
    partial,
    token_row,
    gain,
    slots,
    programs,
    losses,
    flags,
    num_steps,
    strengths,
    decays,
    until_targets,
    until_avoids,
    caps,
    readouts,
    sizes,
    biases,
    matrices,
    matrix_biases,
    grams,
    row_offset,
    num_tokens,
    width,
    workspace_width,
    HAS_GAIN: tl.constexpr,
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
    plain = is_plain(program, losses, flags, until_targets, until_avoids, caps, entry, slot >= 0)
    slot = tl.where(plain, slot, -1)
    strength = tl.load(strengths + entry, mask=plain, other=0.0)
    if HAS_GAIN:
        strength *= tl.load(gain + tokens, mask=plain, other=1.0)
    decay = tl.load(decays + entry, mask=plain, other=0.0)
    steps = tl.load(num_steps + entry, mask=plain, other=0)
    tl.store(keep + tokens, 1.0, mask=plain)
    tl.store(steps_taken + tokens, steps, mask=plain)
    rows = tokens[:, None] * workspace_width
    readout = readouts + entry.to(tl.int64)[:, None] * width
    chunk = tl.arange(0, BLOCK_N)
    first_slot, slot_count = slot_range(slot)
    for i in range(slot_count):
        s = first_slot + i
        mine = slot == s
        if any_of(mine):
            # One size for both layers: the tables are zero beyond a slot's own, and registers are scarce.
            r, m = tl.load(sizes + s * 3), tl.load(sizes + s * 3 + 1)
            size = tl.maximum(r, m)
            bias, matrix_bias = biases + s * width, matrix_biases + s * width
            place = s.to(tl.int64) * width * width
            matrix, gram = matrices + place, grams + place
            # z1 = p + b1; s starts at 0, or not finite where p is not.
            for n in range(0, size, BLOCK_N):
                units = n + chunk
                there = mine[:, None] & (units < size)[None, :]
                known = mine[:, None] & (units < r)[None, :]
                p = projection_chunk(partial, rows, units, known, num_tokens, workspace_width, NUM_SUMS)
                b = tl.load(bias + units, mask=units < size, other=0.0)
                tl.store(pre_activation + rows + units[None, :], p + b[None, :], mask=there)
                tl.store(coefficients + rows + units[None, :], p * 0.0, mask=there)
            tl.debug_barrier()
            last = tl.max(tl.where(mine, steps, 0), axis=0)
            step_size = strength
            for t in range(last):
                now = tl.where(mine & (t < steps), step_size, 0.0)
                # upper = 1[z2 > 0] * u * step size
                for n in range(0, size, BLOCK_N):
                    units = n + chunk
                    there = mine[:, None] & (units < size)[None, :]
                    z2 = multiply_chunk(
                        pre_activation + rows, matrix, 1, width, mine, units, size, size,
                        True, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                    )  # fmt: skip
                    z2 += tl.load(matrix_bias + units, mask=units < size, other=0.0)[None, :]
                    u = tl.load(readout + units[None, :], mask=there, other=0.0) * now[:, None]
                    tl.store(upper + rows + units[None, :], tl.where(z2 > 0.0, u, 0.0), mask=there)
                tl.debug_barrier()
                # step = 1[z1 > 0] * (W2^T upper); s += step
                for n in range(0, size, BLOCK_N):
                    units = n + chunk
                    there = mine[:, None] & (units < size)[None, :]
                    g1 = multiply_chunk(
                        upper + rows, matrix, width, 1, mine, units, size, size,
                        False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                    )  # fmt: skip
                    z1 = tl.load(pre_activation + rows + units[None, :], mask=there, other=0.0)
                    g1 = tl.where(z1 > 0.0, g1, 0.0)
                    tl.store(step + rows + units[None, :], g1, mask=there)
                    total = tl.load(coefficients + rows + units[None, :], mask=there, other=0.0)
                    tl.store(coefficients + rows + units[None, :], total + g1, mask=there)
                tl.debug_barrier()
                # z1 -= G step
                if t + 1 < last:
                    for n in range(0, size, BLOCK_N):
                        units = n + chunk
                        there = mine[:, None] & (units < size)[None, :]
                        moved = multiply_chunk(
                            step + rows, gram, 1, width, mine, units, size, size,
                            False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                        )  # fmt: skip
                        z1 = tl.load(pre_activation + rows + units[None, :], mask=there, other=0.0)
                        tl.store(pre_activation + rows + units[None, :], z1 - moved, mask=there)
                    tl.debug_barrier()
                step_size = step_size * decay
            # A token whose s is not finite is not edited.
            bad = tl.zeros([BLOCK_T], dtype=tl.int32)
            for n in range(0, size, BLOCK_N):
                units = n + chunk
                there = mine[:, None] & (units < size)[None, :]
                total = tl.load(coefficients + rows + units[None, :], mask=there, other=0.0)
                bad = tl.maximum(bad, tl.max((tl.abs(total) < float("inf")).to(tl.int32) ^ 1, axis=1))
            bad = tl.where(mine, bad, 0)
            if tl.max(bad, axis=0) > 0:
                tl.atomic_add(num_dropped, tl.sum(bad, axis=0).to(tl.int64), sem="relaxed")
                tl.store(steps_taken + tokens, DROPPED, mask=mine & (bad > 0))
                for n in range(0, size, BLOCK_N):
                    units = n + chunk
                    dropped = (mine & (bad > 0))[:, None] & (units < size)[None, :]
                    tl.store(coefficients + rows + units[None, :], 0.0, mask=dropped)
