# mypy: allow-untyped-defs
"""Triton: the programs without steps, for the tokens of one slot. See `affine.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from ksteer_kernels.device import COSINE, JUMPRELU, RELU, SIGMOID, faded_strength
from ksteer_kernels.hidden.fused_layers import (
    logits_chunk,
    multiply_chunk,
    projection_chunk,
    square_of,
    store_second_layer,
)


@triton.jit
def run_add(
    coefficients,
    readouts,
    strengths,
    gain,
    rows,
    tokens,
    entry,
    mine,
    r,
    width,
    HAS_GAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """s = -strength * gain * readout."""
    strength = faded_strength(strengths, gain, tokens, entry, mine, HAS_GAIN)
    readout = readouts + entry.to(tl.int64)[:, None] * width
    for n in range(0, r, BLOCK_N):
        units = n + tl.arange(0, BLOCK_N)
        there = mine[:, None] & (units < r)[None, :]
        weight = tl.load(readout + units[None, :], mask=there, other=0.0)
        tl.store(coefficients + rows + units[None, :], -strength[:, None] * weight, mask=there)


@triton.jit
def run_affine(
    coefficients,
    pre_activation,
    partial,
    readouts,
    scales,
    gain,
    bias,
    matrix,
    activation,
    threshold,
    gate_unit,
    rows,
    tokens,
    entry,
    mine,
    r,
    m,
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
    """s = gain * gate * (scale * (matrix q) + readout), q = act(p + bias), gate = q[gate_unit] or 1."""
    broken = tl.zeros([BLOCK_T], dtype=tl.int32)
    for n in range(0, r, BLOCK_N):
        units = n + tl.arange(0, BLOCK_N)
        inside = units < r
        there = mine[:, None] & inside[None, :]
        p = projection_chunk(partial, rows, units, there, num_tokens, workspace_width, NUM_SUMS)
        broken = tl.maximum(broken, tl.max((tl.abs(p) < float("inf")).to(tl.int32) ^ 1, axis=1))
        z = p + tl.load(bias + units, mask=inside, other=0.0)[None, :]
        kind = tl.load(activation + units, mask=inside, other=0)[None, :]
        limit = tl.load(threshold + units, mask=inside, other=0.0)[None, :]
        q = tl.where(kind == RELU, tl.maximum(z, 0.0), z)
        q = tl.where(kind == SIGMOID, tl.sigmoid(z), q)
        q = tl.where((kind == JUMPRELU) & (z <= limit), 0.0, q)
        tl.store(pre_activation + rows + units[None, :], q, mask=there)
    tl.debug_barrier()
    place = entry.to(tl.int64)[:, None] * width
    for n in range(0, r, BLOCK_N):
        units = n + tl.arange(0, BLOCK_N)
        inside = units < r
        there = mine[:, None] & inside[None, :]
        y = multiply_chunk(
            pre_activation + rows, matrix, 1, width, mine, units, m, tl.where(m > 0, r, 0),
            False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        s = tl.load(scales + place + units[None, :], mask=there, other=0.0) * y
        s += tl.load(readouts + place + units[None, :], mask=there, other=0.0)
        gate = tl.load(gate_unit + units, mask=inside, other=-1)[None, :]
        opening = tl.load(pre_activation + rows + gate, mask=there & (gate >= 0), other=1.0)
        s *= opening
        if HAS_GAIN:
            s *= tl.load(gain + tokens, mask=mine, other=1.0)[:, None]
        s = tl.where((broken > 0)[:, None], float("nan"), s)
        tl.store(coefficients + rows + units[None, :], s, mask=there)


@triton.jit
def is_above(
    pre_activation,
    upper,
    partial,
    square,
    readouts,
    label_weights,
    margins,
    flags,
    bias,
    matrix,
    matrix_bias,
    head,
    head_bias,
    tokens,
    rows,
    entry,
    mine,
    r,
    m,
    num_labels,
    max_labels,
    num_tokens,
    width,
    workspace_width,
    NUM_SUMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Whether a CONDITION holds, [BLOCK_T]; see `affine.condition_program`."""
    value = tl.zeros([BLOCK_T], dtype=tl.float32)
    wide = entry.to(tl.int64)[:, None]
    for n in range(0, r, BLOCK_N):
        units = n + tl.arange(0, BLOCK_N)
        there = mine[:, None] & (units < r)[None, :]
        z = projection_chunk(partial, rows, units, there, num_tokens, workspace_width, NUM_SUMS)
        z += tl.load(bias + units, mask=units < r, other=0.0)[None, :]
        tl.store(pre_activation + rows + units[None, :], z, mask=there)
        weight = tl.load(readouts + wide * width + units[None, :], mask=there, other=0.0)
        value += tl.sum(weight * z, axis=1)
    if num_labels > 0:
        tl.debug_barrier()
        store_second_layer(
            upper, pre_activation, matrix, matrix_bias, rows, mine, r, m, width,
            BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
        value = tl.zeros([BLOCK_T], dtype=tl.float32)
        for n in range(0, num_labels, BLOCK_N):
            labels = n + tl.arange(0, BLOCK_N)
            there = mine[:, None] & (labels < num_labels)[None, :]
            f = logits_chunk(
                upper, head, head_bias, rows, mine, labels, m, num_labels, width,
                BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
            )  # fmt: skip
            weight = tl.load(label_weights + wide * max_labels + labels[None, :], mask=there, other=0.0)
            value += tl.sum(weight * f, axis=1)
    margin = tl.load(margins + entry, mask=mine, other=0.0)
    cosine = mine & ((tl.load(flags + entry, mask=mine, other=0) & COSINE) != 0)
    length = tl.sqrt_rn(square_of(square, tokens, cosine, num_tokens, NUM_SUMS))
    return mine & (value > tl.where(cosine, margin * length, margin))
