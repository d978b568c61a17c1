# mypy: allow-untyped-defs
"""Triton: write what a stage is doing to the tokens that report it, between its `hidden` and its `expand`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ksteer_kernels.device import (
    CONDITION,
    DROPPED,
    FLOAT32_DOT,
    GENERAL_TILES,
    REPORT,
    active_rows,
    any_of,
    slot_range,
)
from ksteer_kernels.hidden.fused_finish import edit_products
from ksteer_kernels.hidden.fused_layers import (
    logits_chunk,
    multiply_chunk,
    projection_chunk,
    square_of,
    store_second_layer,
)
from ksteer_kernels.reports import ReportBuffers
from ksteer_kernels.settings import RowTables
from ksteer_kernels.tables import ProbeTables
from ksteer_kernels.workspace import Workspace


@triton.jit
def store_logits(
    out,
    pre_activation,
    upper,
    matrix,
    matrix_bias,
    head,
    head_bias,
    rows,
    mine,
    r,
    m,
    num_labels,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the logits of z1 = pre_activation to out, [BLOCK_T, 1] row pointers."""
    tl.debug_barrier()
    store_second_layer(
        upper, pre_activation, matrix, matrix_bias, rows, mine, r, m, width,
        BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    tl.debug_barrier()
    for n in range(0, num_labels, BLOCK_N):
        labels = n + tl.arange(0, BLOCK_N)
        f = logits_chunk(
            upper, head, head_bias, rows, mine, labels, m, num_labels, width,
            BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        tl.store(out + labels[None, :], f, mask=mine[:, None] & (labels < num_labels)[None, :])
    tl.debug_barrier()


@triton.jit(do_not_specialize=["row_offset", "num_tokens", "report_offset"])
def report_kernel(
    shift,
    steps,
    before,
    after,
    coefficients,
    keep,
    steps_taken,
    pre_activation,
    upper,
    partial,
    square,
    token_row,
    slots,
    programs,
    flags,
    num_steps,
    strengths,
    sizes,
    biases,
    matrices,
    matrix_biases,
    heads,
    head_biases,
    grams,
    edit_grams,
    row_offset,
    report_offset,
    num_tokens,
    width,
    max_labels,
    workspace_width,
    report_width,
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
    flag = tl.load(flags + entry, mask=slot >= 0, other=0)
    slot = tl.where(((flag & REPORT) != 0) & (program != CONDITION), slot, -1)
    # An empty slot edits nothing.
    slot = tl.where(tl.load(sizes + slot * 3, mask=slot >= 0, other=0) > 0, slot, -1)
    rows = tokens[:, None] * workspace_width
    out = (report_offset + tokens.to(tl.int64)[:, None]) * report_width
    share = tl.full([BLOCK_T], -1.0, dtype=tl.float32)
    first_slot, slot_count = slot_range(slot)
    for i in range(slot_count):
        s = first_slot + i
        mine = slot == s
        if any_of(mine):
            r, m, num_labels = tl.load(sizes + s * 3), tl.load(sizes + s * 3 + 1), tl.load(sizes + s * 3 + 2)
            square_place = s.to(tl.int64) * width * width
            matrix, gram = matrices + square_place, grams + square_place
            edit_square, product = edit_products(
                coefficients, partial, edit_grams + square_place, rows, mine, r, num_tokens, width,
                workspace_width, NUM_SUMS, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
            )  # fmt: skip
            kept = tl.load(keep + tokens, mask=mine, other=1.0)
            x_square = square_of(square, tokens, mine, num_tokens, NUM_SUMS)
            # |off x - keep U^T s|^2
            off = kept - 1.0
            moved = off * off * x_square - 2 * (off * kept * product) + kept * kept * edit_square
            moved = tl.where(moved < 0.0, 0.0, moved)  # tl.maximum would make 0 of a NaN
            ratio = tl.div_rn(moved, tl.where(x_square > 0.0, x_square, 1.0))
            length = tl.where(ratio >= 0.0, tl.sqrt_rn(ratio), float("inf"))  # NaN: beyond float32
            share = tl.where(mine, tl.where(x_square > 0.0, length, 0.0), share)
            if num_labels > 0:
                head = heads + s.to(tl.int64) * max_labels * width
                # z1 as it is, then as the edit leaves it: keep (p - G s) + b1
                for edited in range(2):
                    for n in range(0, r, BLOCK_N):
                        units = n + tl.arange(0, BLOCK_N)
                        there = mine[:, None] & (units < r)[None, :]
                        p = projection_chunk(
                            partial, rows, units, there, num_tokens, workspace_width, NUM_SUMS
                        )
                        if edited == 1:
                            p -= multiply_chunk(
                                coefficients + rows, gram, 1, width, mine, units, r, r,
                                False, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                            )  # fmt: skip
                            p = p * kept[:, None]
                        p += tl.load(biases + s * width + units, mask=units < r, other=0.0)[None, :]
                        tl.store(pre_activation + rows + units[None, :], p, mask=there)
                    place = before + out
                    if edited == 1:
                        place = after + out
                    store_logits(
                        place, pre_activation, upper,
                        matrix, matrix_biases + s * width, head, head_biases + s * max_labels,
                        rows, mine, r, m, num_labels, width, BLOCK_T, BLOCK_N, BLOCK_K, PRECISION,
                    )  # fmt: skip
    taken = tl.load(steps_taken + tokens, mask=slot >= 0, other=-1)
    share = tl.where((slot >= 0) & (taken == DROPPED), float("nan"), share)
    tl.store(steps + report_offset + tokens, taken, mask=tokens < num_tokens)
    tl.store(shift + report_offset + tokens, share, mask=tokens < num_tokens)


def report_(
    reports: ReportBuffers,
    workspace: Workspace,
    partial: Tensor,
    square: Tensor,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    entry: int,
) -> None:
    """Fill one entry of the buffers from what shrink and hidden left; overwrites pre_activation and upper."""
    sums, num_tokens, _ = partial.shape
    report_kernel[(triton.cdiv(num_tokens, GENERAL_TILES["BLOCK_T"]),)](
        reports.shift,
        reports.steps,
        reports.before,
        reports.after,
        workspace.coefficients,
        workspace.keep,
        workspace.steps,
        workspace.pre_activation,
        workspace.upper,
        partial,
        square,
        token_row,
        rows.slot,
        rows.program,
        rows.flags,
        rows.num_steps,
        rows.strength,
        probes.sizes,
        probes.bias,
        probes.matrix,
        probes.matrix_bias,
        probes.head,
        probes.head_bias,
        probes.gram,
        probes.edit_gram,
        entry * rows.num_rows,
        entry * reports.shift.shape[1],
        num_tokens,
        probes.max_width,
        probes.max_labels,
        workspace.width,
        reports.before.shape[2],
        NUM_SUMS=sums,
        PRECISION=FLOAT32_DOT,
        **{**GENERAL_TILES, "BLOCK_K": 32},
    )
