"""Triton: the programs of a stage, one program instance per block of tokens, in two kernels.

Every [tokens, H] quantity lives in the workspace and is written and read back in chunks, with a barrier
between, so registers and shared memory hold one chunk at a time whatever H is. The slots of a block come in
turn, at their true sizes. A token belongs to one kernel, and a block without tokens of a kernel leaves it at
once.
"""

from __future__ import annotations

import triton
from torch import Tensor

from ksteer_kernels.device import FLOAT32_DOT, GENERAL_TILES, token_block
from ksteer_kernels.hidden.fused_general import general_kernel
from ksteer_kernels.hidden.fused_plain import plain_kernel
from ksteer_kernels.settings import RowTables
from ksteer_kernels.tables import ProbeTables
from ksteer_kernels.workspace import Workspace


def hidden_(
    workspace: Workspace,
    partial: Tensor,
    square: Tensor,
    token_row: Tensor,
    gain: Tensor | None,
    probes: ProbeTables,
    rows: RowTables,
    entry: int,
) -> None:
    """Same contract as `hidden.naive.hidden_`, but that the last stage of a layer leaves is_open as it is."""
    sums, num_tokens, _ = partial.shape
    block_t = token_block(num_tokens)
    stage = entry % rows.num_stages
    faded = rows.strength if gain is None else gain
    plain_kernel[(triton.cdiv(num_tokens, block_t),)](
        workspace.coefficients,
        workspace.keep,
        workspace.steps,
        workspace.dropped,
        workspace.pre_activation,
        workspace.upper,
        workspace.step,
        partial,
        token_row,
        faded,
        rows.slot,
        rows.program,
        rows.loss,
        rows.flags,
        rows.num_steps,
        rows.strength,
        rows.decay,
        rows.until_target,
        rows.until_avoid,
        rows.cap,
        rows.readout,
        probes.sizes,
        probes.bias,
        probes.matrix,
        probes.matrix_bias,
        probes.gram,
        entry * rows.num_rows,
        num_tokens,
        probes.max_width,
        workspace.width,
        HAS_GAIN=gain is not None,
        NUM_SUMS=sums,
        BLOCK_T=block_t,
        BLOCK_N=128 if block_t == 16 else 64,
        BLOCK_K=32,
        PRECISION=FLOAT32_DOT,
        num_warps=8,
        num_stages=3,
    )
    general_kernel[(triton.cdiv(num_tokens, GENERAL_TILES["BLOCK_T"]),)](
        workspace.coefficients,
        workspace.keep,
        workspace.is_open,
        workspace.steps,
        workspace.dropped,
        workspace.pre_activation,
        workspace.upper,
        workspace.step,
        workspace.logits,
        partial,
        square,
        token_row,
        faded,
        rows.slot,
        rows.program,
        rows.loss,
        rows.flags,
        rows.num_steps,
        rows.strength,
        rows.decay,
        rows.margin,
        rows.until_target,
        rows.until_avoid,
        rows.cap,
        rows.readout,
        rows.scale,
        rows.label_weights,
        probes.sizes,
        probes.bias,
        probes.matrix,
        probes.matrix_bias,
        probes.head,
        probes.head_bias,
        probes.gram,
        probes.edit_gram,
        probes.activation,
        probes.threshold,
        probes.gate_unit,
        entry * rows.num_rows,
        num_tokens,
        int(stage == 0),
        int(stage + 1 == rows.num_stages),
        probes.max_width,
        probes.max_labels,
        workspace.width,
        workspace.logits.shape[1],
        HAS_GAIN=gain is not None,
        NUM_SUMS=sums,
        PRECISION=FLOAT32_DOT,
        **GENERAL_TILES,
    )
