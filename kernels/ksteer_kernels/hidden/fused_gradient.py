# mypy: allow-untyped-defs
"""Triton: gradient steps and reflections of the tokens of one slot, in `coefficients`. See `gradient.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from ksteer_kernels.device import GRADIENT, MEAN, NORMALISED, REFLECT, any_of, faded_strength
from ksteer_kernels.hidden.fused_layers import multiply_chunk, projection_chunk
from ksteer_kernels.hidden.fused_loss import store_logit_gradient


@triton.jit
def run_steps(  # noqa: PLR0912, PLR0915
    coefficients,
    pre_activation,
    upper,
    step,
    logits,
    partial,
    readouts,
    label_weights,
    bias,
    matrix,
    matrix_bias,
    head,
    head_bias,
    gram,
    rows,
    tokens,
    entry,
    mine,
    program,
    gain,
    flags,
    losses,
    num_steps,
    strengths,
    decays,
    margins,
    until_targets,
    until_avoids,
    r,
    m,
    num_labels,
    max_labels,
    num_tokens,
    width,
    workspace_width,
    logit_width,
    HAS_GAIN: tl.constexpr,
    NUM_SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write s of `mine` tokens; returns the steps taken [BLOCK_T].

    Blocks without a loss of logits, without an until, without normalised steps skip what these need.
    """
    chunk = tl.arange(0, BLOCK_N)
    reflecting = mine & (program == REFLECT)
    stepping = mine & (program == GRADIENT)
    # The reflection looks at the gradient once.
    steps = tl.load(num_steps + entry, mask=stepping, other=1)
    normalised = stepping & ((tl.load(flags + entry, mask=stepping, other=0) & NORMALISED) != 0)
    until_target = tl.load(until_targets + entry, mask=stepping, other=float("-inf"))
    until_avoid = tl.load(until_avoids + entry, mask=stepping, other=float("inf"))
    has_until = stepping & ((tl.abs(until_target) < float("inf")) | (tl.abs(until_avoid) < float("inf")))
    is_mean = tl.load(losses + entry, mask=stepping, other=MEAN) == MEAN
    by_logits = any_of((mine & (is_mean == 0)) | has_until)
    any_normalised = any_of(normalised)
    any_reflecting = any_of(reflecting)

    # z1 = p + b1; s starts at 0 (or not finite where p is not), but holds p where the reflection needs it.
    for n in range(0, r, BLOCK_N):
        units = n + chunk
        there = mine[:, None] & (units < r)[None, :]
        p = projection_chunk(partial, rows, units, there, num_tokens, workspace_width, NUM_SUMS)
        b = tl.load(bias + units, mask=units < r, other=0.0)
        tl.store(pre_activation + rows + units[None, :], p + b[None, :], mask=there)
        tl.store(coefficients + rows + units[None, :], tl.where(reflecting[:, None], p, p * 0.0), mask=there)
    tl.debug_barrier()

    last = tl.max(tl.where(mine, steps, 0), axis=0)
    readout = readouts + entry.to(tl.int64)[:, None] * width
    strength = faded_strength(strengths, gain, tokens, entry, mine, HAS_GAIN)
    size = tl.where(reflecting, 1.0, strength)
    alive = mine
    taken = tl.zeros([BLOCK_T], dtype=tl.int32)
    t = 0
    while t < last:
        # upper = z2 if the logits are asked for, else 1[z2 > 0] * u * step size
        now = tl.where(alive & (t < steps), size, 0.0)
        factor = tl.where(normalised, 1.0, now)
        for n in range(0, m, BLOCK_N):
            units = n + chunk
            there = mine[:, None] & (units < m)[None, :]
            z2 = multiply_chunk(
                pre_activation + rows, matrix, 1, width, mine, units, m, r,
                True, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
            )  # fmt: skip
            z2 += tl.load(matrix_bias + units, mask=units < m, other=0.0)[None, :]
            if by_logits == 0:
                u = tl.load(readout + units[None, :], mask=there, other=0.0) * factor[:, None]
                z2 = tl.where(z2 > 0.0, u, 0.0)
            tl.store(upper + rows + units[None, :], z2, mask=there)
        tl.debug_barrier()
        if by_logits:
            missed = store_logit_gradient(
                logits, upper, head, head_bias, label_weights, rows, tokens, entry, mine,
                losses, margins, until_targets, until_avoids,
                m, num_labels, max_labels, width, logit_width,
                BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
            )  # fmt: skip
            alive = alive & ((has_until == 0) | (missed > 0))
            last = tl.where(any_of(alive), last, t)
            now = tl.where(alive & (t < steps), size, 0.0)
            factor = tl.where(normalised, 1.0, now)
            for n in range(0, m, BLOCK_N):
                units = n + chunk
                there = mine[:, None] & (units < m)[None, :]
                u = multiply_chunk(
                    logits + tokens[:, None] * logit_width, head, width, 1, mine, units, m, num_labels,
                    False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                )  # fmt: skip
                mean = tl.load(readout + units[None, :], mask=there & is_mean[:, None], other=0.0)
                u = tl.where(is_mean[:, None], mean, u) * factor[:, None]
                z2 = tl.load(upper + rows + units[None, :], mask=there, other=0.0)
                tl.store(upper + rows + units[None, :], tl.where(z2 > 0.0, u, 0.0), mask=there)
            tl.debug_barrier()
        taken += (alive & (t < steps)).to(tl.int32)
        # step = 1[z1 > 0] * (W2^T upper); s += step, unless its length decides how much of it is taken
        measured = any_normalised | (any_reflecting & (t == 0))
        for n in range(0, r, BLOCK_N):
            units = n + chunk
            there = mine[:, None] & (units < r)[None, :]
            g1 = multiply_chunk(
                upper + rows, matrix, width, 1, mine, units, r, m,
                False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
            )  # fmt: skip
            z1 = tl.load(pre_activation + rows + units[None, :], mask=there, other=0.0)
            g1 = tl.where(z1 > 0.0, g1, 0.0)
            tl.store(step + rows + units[None, :], g1, mask=there)
            if measured == 0:
                total = tl.load(coefficients + rows + units[None, :], mask=there, other=0.0)
                tl.store(coefficients + rows + units[None, :], total + g1, mask=there)
        tl.debug_barrier()
        # z1 -= G step; on the way |v|^2 = g1^T G g1 and x.v = p.g1, where they are asked for
        if (t + 1 < last) | measured:
            square = tl.zeros([BLOCK_T], dtype=tl.float32)
            product = tl.zeros([BLOCK_T], dtype=tl.float32)
            for n in range(0, r, BLOCK_N):
                units = n + chunk
                there = mine[:, None] & (units < r)[None, :]
                moved = multiply_chunk(
                    step + rows, gram, 1, width, mine, units, r, r,
                    False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                )  # fmt: skip
                if measured:
                    g1 = tl.load(step + rows + units[None, :], mask=there, other=0.0)
                    p = tl.load(coefficients + rows + units[None, :], mask=there, other=0.0)
                    square += tl.sum(g1 * moved, axis=1)
                    product += tl.sum(tl.where(reflecting[:, None], g1 * p, 0.0), axis=1)
                    tl.store(upper + rows + units[None, :], moved, mask=there)
                else:
                    z1 = tl.load(pre_activation + rows + units[None, :], mask=there, other=0.0)
                    tl.store(pre_activation + rows + units[None, :], z1 - moved, mask=there)
            tl.debug_barrier()
            if measured:
                # a normalised step is size g1 / |v|, the reflection is factor (x.v)/(v.v) g1
                defined = square > 0.0
                divisor = tl.where(defined, square, 1.0)
                share = tl.where(normalised, tl.div_rn(now, tl.sqrt_rn(divisor)), 1.0)
                strength = faded_strength(strengths, gain, tokens, entry, mine, HAS_GAIN)
                share = tl.where(reflecting, tl.div_rn(strength * product, divisor), share)
                share = tl.where(defined | ((normalised | reflecting) == 0), share, 0.0)
                started = (mine & ((reflecting == 0) | (t >= steps)))[:, None]
                for n in range(0, r, BLOCK_N):
                    units = n + chunk
                    there = mine[:, None] & (units < r)[None, :]
                    g1 = tl.load(step + rows + units[None, :], mask=there, other=0.0)
                    g1 = tl.where(share[:, None] == 0.0, 0.0, share[:, None] * g1)
                    total = tl.load(coefficients + rows + units[None, :], mask=there & started, other=0.0)
                    tl.store(coefficients + rows + units[None, :], total + g1, mask=there)
                    z1 = tl.load(pre_activation + rows + units[None, :], mask=there, other=0.0)
                    moved = tl.load(upper + rows + units[None, :], mask=there, other=0.0)
                    tl.store(pre_activation + rows + units[None, :], z1 - share[:, None] * moved, mask=there)
                tl.debug_barrier()
        size = size * tl.load(decays + entry, mask=mine, other=0.0)
        t += 1
    return tl.where(stepping, taken, -1)
