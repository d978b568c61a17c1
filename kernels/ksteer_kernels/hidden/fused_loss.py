# mypy: allow-untyped-defs
"""Triton: losses that depend on the logits, and whether a token's labels are where they should be."""

from __future__ import annotations

import triton
import triton.language as tl

from ksteer_kernels.device import HINGE, SOFTMIN, any_of
from ksteer_kernels.hidden.fused_layers import logits_chunk


@triton.jit
def store_logit_gradient(
    logits,
    upper,
    head,
    head_bias,
    label_weights,
    rows,
    tokens,
    entry,
    mine,
    losses,
    margins,
    until_targets,
    until_avoids,
    m,
    num_labels,
    max_labels,
    width,
    logit_width,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dL/df into logits, as `gradient.logit_weights`; returns which tokens miss an until, [BLOCK_T].

    upper holds z2.
    """
    logit_rows = tokens[:, None] * logit_width
    weights = label_weights + entry.to(tl.int64)[:, None] * max_labels
    until_target = tl.load(until_targets + entry, mask=mine, other=float("-inf"))
    until_avoid = tl.load(until_avoids + entry, mask=mine, other=float("inf"))
    missed = tl.zeros([BLOCK_T], dtype=tl.int32)
    highest = tl.full([BLOCK_T], float("-inf"), dtype=tl.float32)
    for n in range(0, num_labels, BLOCK_N):
        labels = n + tl.arange(0, BLOCK_N)
        there = mine[:, None] & (labels < num_labels)[None, :]
        f = logits_chunk(
            upper, head, head_bias, rows, mine, labels, m, num_labels, width,
            BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        tl.store(logits + logit_rows + labels[None, :], f, mask=there)
        c = tl.load(weights + labels[None, :], mask=there, other=0.0)
        wrong = ((c < 0.0) & (f < until_target[:, None])) | ((c > 0.0) & (f > until_avoid[:, None]))
        missed = tl.maximum(missed, tl.max(wrong.to(tl.int32), axis=1))
        # softmin: targets share weight 1 by w exp(-f); the largest exponent is taken out first.
        exponent = tl.where(c < 0.0, tl.log(tl.where(c < 0.0, -c, 1.0)) - f, float("-inf"))
        highest = tl.maximum(highest, tl.max(exponent, axis=1))
    tl.debug_barrier()
    highest = tl.where(tl.abs(highest) < float("inf"), highest, 0.0)
    loss = tl.load(losses + entry, mask=mine, other=0)
    softmin = mine & (loss == SOFTMIN)
    total = tl.zeros([BLOCK_T], dtype=tl.float32)
    if any_of(softmin):
        for n in range(0, num_labels, BLOCK_N):
            labels = n + tl.arange(0, BLOCK_N)
            there = softmin[:, None] & (labels < num_labels)[None, :]
            f = tl.load(logits + logit_rows + labels[None, :], mask=there, other=0.0)
            c = tl.load(weights + labels[None, :], mask=there, other=0.0)
            total += tl.sum(tl.where(c < 0.0, -c * tl.exp(-f - highest[:, None]), 0.0), axis=1)
    margin = tl.load(margins + entry, mask=mine, other=0.0)
    scale = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 1.0)
    for n in range(0, num_labels, BLOCK_N):
        labels = n + tl.arange(0, BLOCK_N)
        there = mine[:, None] & (labels < num_labels)[None, :]
        f = tl.load(logits + logit_rows + labels[None, :], mask=there, other=0.0)
        c = tl.load(weights + labels[None, :], mask=there, other=0.0)
        share = c * tl.exp(-f - highest[:, None]) * scale[:, None]
        short = tl.where(c < 0.0, f < margin[:, None], f > -margin[:, None])
        weight = tl.where((loss == SOFTMIN)[:, None] & (c < 0.0), share, c)
        weight = tl.where((loss == HINGE)[:, None] & (short == 0), 0.0, weight)
        tl.store(logits + logit_rows + labels[None, :], weight, mask=there)
    tl.debug_barrier()
    return missed
