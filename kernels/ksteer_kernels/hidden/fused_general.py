# mypy: allow-untyped-defs
"""Triton: every program with every setting, but for what `fused_plain.py` does.

A block pays for the programs and settings that its own tokens have. Settings are loaded where they are used:
registers are scarce here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ksteer_kernels.device import (
    ADD,
    AFFINE,
    CONDITION,
    DROPPED,
    GATED,
    GRADIENT,
    REFLECT,
    active_rows,
    any_of,
    is_plain,
    slot_range,
)
from ksteer_kernels.hidden.fused_affine import is_above, run_add, run_affine
from ksteer_kernels.hidden.fused_finish import finish
from ksteer_kernels.hidden.fused_gradient import run_steps


@triton.jit(do_not_specialize=["row_offset", "num_tokens", "is_first", "is_last"])
def general_kernel(
    coefficients,
    keep,
    is_open,
    steps_taken,
    num_dropped,
    pre_activation,
    upper,
    step,
    logits,
    partial,
    square,
    token_row,
    gain,
    slots,
    programs,
    losses,
    flags,
    num_steps,
    strengths,
    decays,
    margins,
    until_targets,
    until_avoids,
    caps,
    readouts,
    scales,
    label_weights,
    sizes,
    biases,
    matrices,
    matrix_biases,
    heads,
    head_biases,
    grams,
    edit_grams,
    activations,
    thresholds,
    gate_units,
    row_offset,
    num_tokens,
    is_first,
    is_last,
    width,
    max_labels,
    workspace_width,
    logit_width,
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
    active = slot >= 0
    active = active & (
        is_plain(program, losses, flags, until_targets, until_avoids, caps, entry, active) == 0
    )
    slot = tl.where(active, slot, -1)
    gated = active & ((tl.load(flags + entry, mask=active, other=0) & GATED) != 0)
    # In the first stage nothing is open.
    was_open = tl.load(is_open + tokens, mask=gated, other=0) > is_first
    shut = gated & (was_open == 0)
    opened = tl.zeros([BLOCK_T], dtype=tl.int32)

    rows = tokens[:, None] * workspace_width
    first_slot, slot_count = slot_range(slot)
    for i in range(slot_count):
        s = first_slot + i
        mine = slot == s
        if any_of(mine):
            r, m, num_labels = tl.load(sizes + s * 3), tl.load(sizes + s * 3 + 1), tl.load(sizes + s * 3 + 2)
            square_place = s.to(tl.int64) * width * width
            bias, matrix, gram = biases + s * width, matrices + square_place, grams + square_place
            matrix_bias, head_bias = matrix_biases + s * width, head_biases + s * max_labels
            head = heads + s.to(tl.int64) * max_labels * width
            running = mine & (shut == 0) & (tl.zeros([BLOCK_T], dtype=tl.int32) + r > 0)
            taken = tl.full([BLOCK_T], -1, dtype=tl.int32)

            stepping = running & ((program == GRADIENT) | (program == REFLECT))
            if any_of(stepping):
                taken = run_steps(
                    coefficients, pre_activation, upper, step, logits, partial, readouts, label_weights,
                    bias, matrix, matrix_bias, head, head_bias, gram, rows, tokens, entry, stepping, program,
                    gain, flags, losses, num_steps, strengths, decays, margins, until_targets, until_avoids,
                    r, m, num_labels, max_labels, num_tokens, width, workspace_width, logit_width,
                    HAS_GAIN, NUM_SUMS, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                )  # fmt: skip

            adding = running & (program == ADD)
            if any_of(adding):
                run_add(
                    coefficients, readouts, strengths, gain, rows, tokens, entry, adding, r, width,
                    HAS_GAIN, BLOCK_N,
                )  # fmt: skip

            mapping = running & (program == AFFINE)
            if any_of(mapping):
                run_affine(
                    coefficients, pre_activation, partial, readouts, scales, gain, bias, matrix,
                    activations + s * width, thresholds + s * width, gate_units + s * width,
                    rows, tokens, entry, mapping, r, m, num_tokens, width, workspace_width,
                    HAS_GAIN, NUM_SUMS, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                )  # fmt: skip

            deciding = running & (program == CONDITION)
            if any_of(deciding):
                above = is_above(
                    pre_activation, upper, partial, square, readouts, label_weights, margins, flags,
                    bias, matrix, matrix_bias, head, head_bias, tokens, rows, entry, deciding,
                    r, m, num_labels, max_labels, num_tokens, width, workspace_width,
                    NUM_SUMS, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                )  # fmt: skip
                opened = tl.where(above, 1, opened)

            editing = mine & (program != CONDITION)
            if any_of(editing):
                dropped = finish(
                    coefficients, keep, partial, square, edit_grams + square_place, flags, caps,
                    tokens, rows, entry, editing, shut, program != ADD, r, num_tokens, width, workspace_width,
                    NUM_SUMS, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                )  # fmt: skip
                taken = tl.where(dropped, DROPPED, tl.where(shut, 0, taken))
                tl.store(steps_taken + tokens, taken, mask=editing)
                if any_of(dropped):
                    count = tl.sum(dropped.to(tl.int64), axis=0)
                    tl.atomic_add(num_dropped, count, sem="relaxed")
    if is_last == 0:
        tl.debug_barrier()
        tl.store(is_open + tokens, opened, mask=tokens < num_tokens)
