"""Device-side helpers shared by the Triton kernels, and the choices of tile sizes their launchers share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from ksteer_kernels import workspace
from ksteer_kernels.settings import Flag, Loss, Program
from ksteer_kernels.weights import Activation

GRADIENT = tl.constexpr(int(Program.GRADIENT))
REFLECT = tl.constexpr(int(Program.REFLECT))
ADD = tl.constexpr(int(Program.ADD))
AFFINE = tl.constexpr(int(Program.AFFINE))
CONDITION = tl.constexpr(int(Program.CONDITION))
MEAN = tl.constexpr(int(Loss.MEAN))
SOFTMIN = tl.constexpr(int(Loss.SOFTMIN))
HINGE = tl.constexpr(int(Loss.HINGE))
NORMALISED = tl.constexpr(int(Flag.NORMALISED))
PRESERVE_NORM = tl.constexpr(int(Flag.PRESERVE_NORM))
GATED = tl.constexpr(int(Flag.GATED))
REPORT = tl.constexpr(int(Flag.REPORT))
COSINE = tl.constexpr(int(Flag.COSINE))
RELU = tl.constexpr(int(Activation.RELU))
SIGMOID = tl.constexpr(int(Activation.SIGMOID))
JUMPRELU = tl.constexpr(int(Activation.JUMPRELU))
NOT_PLAIN = tl.constexpr(int(Flag.NORMALISED | Flag.PRESERVE_NORM | Flag.GATED))
DROPPED = tl.constexpr(workspace.DROPPED)
NEEDS_SQUARE = tl.constexpr(int(Flag.PRESERVE_NORM | Flag.REPORT | Flag.COSINE))

FLOAT32_DOT = "tf32x3"
"""How float32 operands are multiplied. Three TF32 tensor-core products carry 22 bits of each operand, as good
as float32 once hundreds of products are summed. "ieee" would leave the tensor cores for scalar multiply-adds;
plain "tf32" (11 bits) would flip ReLU masks and lose the accuracy of many steps."""

GENERAL_TILES = {"BLOCK_T": 16, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2}
"""Of the kernels with every program and setting: small, so that their registers suffice (Triton 3.9)."""

FEW_TOKENS = 256
"""Up to here token blocks are as small as the tensor cores allow, so that more programs share the work."""


def token_block(num_tokens: int) -> int:
    """Tokens per program: 16 for decode-sized batches, 64 for prefill."""
    return 16 if num_tokens <= FEW_TOKENS else 64


def is_half(dtype: torch.dtype) -> bool:
    return dtype in {torch.bfloat16, torch.float16}


@triton.jit
def active_rows(token_row, slots, programs, num_steps, strengths, row_offset, tokens, num_tokens):
    """Address, slot (-1 unless active) and program of each token of a block; -1 is masked, never an index.

    The row tables are addressed at row_offset + row, row_offset = entry * R.
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
def needs_square(caps, flags, entry, active):
    """Whether anything asks for |x|^2 of a token, as `groups.needs_square`."""
    cap = tl.load(caps + entry, mask=active, other=float("inf"))
    flag = tl.load(flags + entry, mask=active, other=0)
    return active & ((cap < float("inf")) | ((flag & NEEDS_SQUARE) != 0))


@triton.jit
def faded_strength(strengths, gain, tokens, entry, mine, HAS_GAIN: tl.constexpr):
    """strength * gain of each token, [BLOCK_T]."""
    strength = tl.load(strengths + entry, mask=mine, other=0.0)
    if HAS_GAIN:
        strength *= tl.load(gain + tokens, mask=mine, other=1.0)
    return strength


@triton.jit
def is_plain(program, losses, flags, until_targets, until_avoids, caps, entry, active):
    """Nothing but gradient steps of the mean loss: a token whose steps need neither logits nor lengths."""
    loss = tl.load(losses + entry, mask=active, other=0)
    flag = tl.load(flags + entry, mask=active, other=0)
    target = tl.load(until_targets + entry, mask=active, other=float("-inf"))
    avoid = tl.load(until_avoids + entry, mask=active, other=float("inf"))
    cap = tl.load(caps + entry, mask=active, other=float("inf"))
    endless = (tl.abs(target) == float("inf")) & (tl.abs(avoid) == float("inf")) & (cap == float("inf"))
    return active & (program == GRADIENT) & (loss == MEAN) & ((flag & NOT_PLAIN) == 0) & endless


@triton.jit
def any_of(mask):
    """Whether the mask holds anywhere in a block, a scalar."""
    return tl.max(mask.to(tl.int32), axis=0) > 0


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
