# mypy: allow-untyped-defs
"""Triton: what the programs of a block of tokens share, one chunk of a [tokens, H] quantity at a time.

Everywhere: `mine` are the tokens meant, `rows` their offsets in the workspace [BLOCK_T, 1], and matrices are
addressed at the slot, with the strides of the tables.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply_chunk(
    left,
    matrix,
    row_stride,
    column_stride,
    mine,
    units,
    num_units,
    inner_size,
    RELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns `units` of left[:, :inner_size] @ matrix, [BLOCK_T, BLOCK_N]; RELU: of relu(left).

    left: [BLOCK_T, 1] row pointers into the workspace; matrix[k, n] is at k * row_stride + n * column_stride.
    """
    acc = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
    for k in range(0, inner_size, BLOCK_K):
        inner = k + tl.arange(0, BLOCK_K)
        a = tl.load(left + inner[None, :], mask=mine[:, None] & (inner < inner_size)[None, :], other=0.0)
        if RELU:
            a = tl.maximum(a, 0.0)
        b = tl.load(
            matrix + inner[:, None] * row_stride + units[None, :] * column_stride,
            mask=(inner < inner_size)[:, None] & (units < num_units)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def projection_chunk(partial, rows, units, there, num_tokens, workspace_width, NUM_SUMS: tl.constexpr):
    """Columns `units` of p = basis x: the sums of shrink, added in order."""
    p = tl.load(partial + rows + units[None, :], mask=there, other=0.0)
    for part in tl.static_range(1, NUM_SUMS):
        offset = rows + (num_tokens * part) * workspace_width
        p += tl.load(partial + offset + units[None, :], mask=there, other=0.0)
    return p


@triton.jit
def square_of(square, tokens, mine, num_tokens, NUM_SUMS: tl.constexpr):
    """|x|^2 [BLOCK_T]: the sums of shrink, added in order."""
    total = tl.load(square + tokens, mask=mine, other=0.0)
    for part in tl.static_range(1, NUM_SUMS):
        total += tl.load(square + (num_tokens * part) + tokens, mask=mine, other=0.0)
    return total


@triton.jit
def store_second_layer(
    upper,
    pre_activation,
    matrix,
    bias,
    rows,
    mine,
    inner_size,
    num_units,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """upper[:, :num_units] = z2 = relu(z1) matrix^T + bias, z1 = pre_activation[:, :inner_size]."""
    for n in range(0, num_units, BLOCK_N):
        units = n + tl.arange(0, BLOCK_N)
        z2 = multiply_chunk(
            pre_activation + rows, matrix, 1, width, mine, units, num_units, inner_size,
            True, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        z2 += tl.load(bias + units, mask=units < num_units, other=0.0)[None, :]
        tl.store(upper + rows + units[None, :], z2, mask=mine[:, None] & (units < num_units)[None, :])


@triton.jit
def logits_chunk(
    upper,
    head,
    bias,
    rows,
    mine,
    labels,
    inner_size,
    num_labels,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Logits of `labels`, relu(z2) head^T + bias with z2 = upper[:, :inner_size]."""
    f = multiply_chunk(
        upper + rows, head, 1, width, mine, labels, num_labels, inner_size,
        True, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    return f + tl.load(bias + labels, mask=labels < num_labels, other=0.0)[None, :]
