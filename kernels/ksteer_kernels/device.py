"""Device-side helpers shared by the Triton kernels, and the choices of tile sizes their launchers share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

GRADIENT = tl.constexpr(0)
REFLECT = tl.constexpr(1)
ADD = tl.constexpr(2)

FLOAT32_DOT = "tf32x3"
"""How float32 operands are multiplied. Three TF32 tensor-core products carry 22 bits of each operand, as good
as float32 once hundreds of products are summed. "ieee" would leave the tensor cores for scalar multiply-adds;
plain "tf32" (11 bits) would flip ReLU masks and lose the accuracy of many steps."""

FEW_TOKENS = 256
"""Up to here token blocks are as small as the tensor cores allow, so that more programs share the work."""


def token_block(num_tokens: int) -> int:
    """Tokens per program: 16 for decode-sized batches, 64 for prefill."""
    return 16 if num_tokens <= FEW_TOKENS else 64


def is_half(dtype: torch.dtype) -> bool:
    return dtype in {torch.bfloat16, torch.float16}


@triton.jit
def active_rows(token_row, slots, programs, num_steps, strengths, row_offset, tokens, num_tokens):
    """Row, slot (-1 unless active) and program of each token of a block; -1 is masked, never an index.

    The row tables are addressed at row_offset = layer * R.
    """
    row = tl.load(token_row + tokens, mask=tokens < num_tokens, other=-1)
    has_row = row >= 0
    entry = row_offset + row
    slot = tl.load(slots + entry, mask=has_row, other=-1)
    program = tl.load(programs + entry, mask=has_row, other=0)
    steps = tl.load(num_steps + entry, mask=has_row, other=0)
    strength = tl.load(strengths + entry, mask=has_row, other=0.0)
    active = (slot >= 0) & (strength != 0.0) & ((program != GRADIENT) | (steps > 0))
    return entry, tl.where(active, slot, -1), program


@triton.jit
def slot_range(slot):
    """First slot in a block and how many from there on to look for, 0 when no token is active."""
    first = tl.min(tl.where(slot >= 0, slot, 2147483647), axis=0)
    last = tl.max(slot, axis=0)
    return first, tl.where(last >= 0, last - first + 1, 0)


# Triton's interpreter multiplies the bit patterns of bfloat16 and cuts float32 off where it should round.
# The two helpers below do there by other means what the hardware does.
INTERPRETED = tl.constexpr(not isinstance(slot_range, JITFunction))


@triton.jit
def dot_half(a, b, acc):
    """acc + a @ b for 16-bit a and b, products exact, accumulated in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """Round float32 x to the nearest value of dtype, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # noqa: PLR0124
    return x.to(dtype)
