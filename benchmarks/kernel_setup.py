"""One decode or prefill batch for the kernels, and the bytes and products each kernel needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import (
    NO_ROW,
    ProbeTables,
    Program,
    RowTables,
    SlotWeights,
    Workspace,
    plan_groups,
    steer_,
    steer_groups_,
)
from ksteer_kernels.reference.mlp import MLPWeights, loss_gradient
from ksteer_kernels.rows import token_rows_
from ksteer_kernels.workspace import num_partials

NUM_LABELS = 6
VARIANCE_SLOT = 1
CHECKED_TOKENS = 64
"""Tokens whose whole edit is compared with the float64 reference."""


@dataclass
class Batch:
    """T tokens of `requests` requests, each a row with a readout of its own, all steered by one probe.

    The probe is in slot 0, and in VARIANCE_SLOT again with `variance` [d] as its metric.
    hidden, residual: [T, d] weight dtype. Decode: T = requests; prefill: the tokens are shared out evenly.
    """

    hidden: Tensor
    residual: Tensor
    token_row: Tensor
    gain: Tensor
    positions: Tensor
    query_start_loc: Tensor
    request_rows: Tensor
    probes: ProbeTables
    rows: RowTables
    workspace: Workspace
    weights: MLPWeights
    variance: Tensor
    steps: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(T, d, H)."""
        return (*self.hidden.shape, self.probes.max_width)  # type: ignore[return-value]

    @property
    def requests(self) -> int:
        return self.request_rows.shape[0]

    @property
    def metric(self) -> Tensor | None:
        """[d] float64, where the rows' slot has one."""
        return self.variance.double() if bool(self.rows.slot.any()) else None

    def under_variance(self) -> Batch:
        """The same batch steered by the slot whose metric is the variance."""
        return replace(self, rows=replace(self.rows, slot=torch.full_like(self.rows.slot, VARIANCE_SLOT)))

    def copy(self) -> Batch:
        """With an output and scratch of its own, for a second implementation."""
        workspace = Workspace.allocate(self.sizes[0], self.sizes[2], self.hidden.device, NUM_LABELS)
        return replace(
            self, hidden=self.hidden.clone(), token_row=self.token_row.clone(), gain=self.gain.clone(),
            workspace=workspace,
        )  # fmt: skip


def make_batch(
    tokens: int, requests: int, hidden_size: int, width: int, steps: int, dtype: torch.dtype, device: str
) -> Batch:
    """Random weights and activations of ordinary scale; the edit is about half as long as x."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    probes = ProbeTables.allocate(2, width, NUM_LABELS, hidden_size, dtype, device)
    basis, bias, matrix = normal(width, hidden_size).to(dtype), normal(width), normal(width, width)
    matrix_bias, head = normal(width), normal(NUM_LABELS, width)
    tensors = (basis, bias, matrix, matrix_bias, head, torch.zeros(NUM_LABELS))
    variance = torch.rand(hidden_size, generator=generator) + 0.5
    probes.load(0, SlotWeights(*tensors))
    probes.load(VARIANCE_SLOT, SlotWeights(*tensors, scale=variance))
    weights = MLPWeights(*(tensor.double() for tensor in tensors))
    hidden = (normal(tokens, hidden_size) * hidden_size**0.5 / 2).to(dtype)
    residual = (normal(tokens, hidden_size) * hidden_size**0.5 / 2).to(dtype)
    c = torch.randn(requests, NUM_LABELS, generator=generator)
    c /= c.abs().sum(1, keepdim=True)
    x = (hidden[:CHECKED_TOKENS].double() + residual[:CHECKED_TOKENS].double())[:requests]
    gradient = loss_gradient(x, weights, c[: len(x)].double())
    rows = RowTables.allocate(1, requests, width, NUM_LABELS, device)
    rows.slot.zero_()
    rows.program.fill_(Program.GRADIENT)
    rows.num_steps.fill_(steps)
    rows.strength.fill_(0.5 * float(x.norm(dim=1).median() / gradient.norm(dim=1).median()) / steps)
    rows.readout[0, :, :width] = c @ head
    rows.label_weights[0] = c
    rows.windows[:, :, 1] = 2**40
    starts = torch.arange(requests + 1, dtype=torch.int32) * (tokens // requests)
    starts[-1] = tokens
    batch = Batch(
        hidden=hidden.to(device),
        residual=residual.to(device),
        token_row=torch.full((1, tokens), NO_ROW, dtype=torch.int32, device=device),
        gain=torch.ones(1, tokens, device=device),
        positions=torch.arange(tokens, device=device),
        query_start_loc=starts.to(device),
        request_rows=torch.arange(requests, dtype=torch.int32, device=device),
        probes=probes,
        rows=rows,
        workspace=Workspace.allocate(tokens, width, device, NUM_LABELS),
        weights=weights,
        variance=variance,
        steps=steps,
    )
    run_token_rows(batch, import_module("ksteer_kernels.rows.naive"))
    return batch


def run_token_rows(batch: Batch, module: Any) -> None:
    module.token_rows_(
        batch.token_row, batch.gain, batch.positions, batch.query_start_loc, batch.request_rows, batch.rows,
        batch.sizes[0],
    )  # fmt: skip


def run_shrink(batch: Batch, module: Any) -> None:
    space, tokens = batch.workspace, batch.sizes[0]
    module.shrink_(
        space.partial_sums(tokens), space.square_sums(tokens), batch.hidden, batch.residual,
        batch.token_row[0], batch.probes, batch.rows, 0,
    )  # fmt: skip


def run_hidden(batch: Batch, module: Any) -> None:
    space, tokens = batch.workspace, batch.sizes[0]
    module.hidden_(
        space, space.partial_sums(tokens), space.square_sums(tokens), batch.token_row[0], batch.gain[0],
        batch.probes, batch.rows, 0,
    )  # fmt: skip


def run_expand(batch: Batch, module: Any) -> None:
    space = batch.workspace
    module.expand_(
        batch.hidden, batch.residual, space.coefficients, space.keep, batch.token_row[0], batch.probes,
        batch.rows, 0,
    )  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """module: `{}` is the implementation. bytes: of every tensor it must read or write, each once. flops:
    multiplications and additions. output: what is compared with the plain torch implementation's."""

    name: str
    module: str
    run: Callable[[Batch, Any], None]
    bytes: Callable[[Batch], int]
    flops: Callable[[Batch], int]
    output: Callable[[Batch], Tensor]


def _shrink_bytes(batch: Batch) -> int:
    tokens, size, width = batch.sizes
    b = batch.hidden.element_size()
    return 2 * tokens * size * b + width * size * b + 4 * num_partials(tokens) * tokens * width + 4 * tokens


def _hidden_bytes(batch: Batch) -> int:
    tokens, _, width = batch.sizes
    per_token = 4 * tokens * width * (num_partials(tokens) + 1)
    return per_token + 4 * batch.requests * width + 4 * 2 * width * width


def _expand_bytes(batch: Batch) -> int:
    tokens, size, width = batch.sizes
    b = batch.hidden.element_size()
    return 2 * tokens * size * b + width * size * b + 4 * tokens * width + 8 * tokens


def _token_rows_bytes(batch: Batch) -> int:
    return (8 + 4 + 4) * batch.sizes[0] + (8 + 32 + 16) * batch.requests


def _project_flops(batch: Batch) -> int:
    tokens, size, width = batch.sizes
    return 2 * tokens * size * width


def _hidden_flops(batch: Batch) -> int:
    tokens, _, width = batch.sizes
    return 2 * tokens * width * width * (3 * batch.steps - 1)


KERNELS = (
    Kernel(
        "token_rows", "ksteer_kernels.rows.{}", run_token_rows, _token_rows_bytes, lambda _: 0,
        lambda batch: batch.token_row,
    ),
    Kernel(
        "shrink", "ksteer_kernels.shrink.{}", run_shrink, _shrink_bytes, _project_flops,
        lambda batch: batch.workspace.partial_sums(batch.sizes[0]).sum(0),
    ),
    Kernel(
        "hidden", "ksteer_kernels.hidden.{}", run_hidden, _hidden_bytes, _hidden_flops,
        lambda batch: batch.workspace.coefficients[: batch.sizes[0]],
    ),
    Kernel(
        "expand", "ksteer_kernels.expand.{}", run_expand, _expand_bytes, _project_flops,
        lambda batch: batch.hidden,
    ),
)  # fmt: skip
"""In the order in which they run: each one's check leaves the input of the next."""


def steer_with(backend: Any) -> Callable[[Batch], None]:
    """The whole edit by `steer_`."""

    def edit(batch: Batch) -> None:
        steer_(
            batch.hidden, batch.residual, batch.token_row, batch.probes, batch.rows, 0, gain=batch.gain,
            workspace=batch.workspace, backend=backend,
        )  # fmt: skip

    return edit


def steer_planned(batch: Batch) -> Callable[[], None]:
    """The CPU path's edit, with its plan made beforehand, as in steady decoding."""
    groups = plan_groups(batch.token_row[0], batch.rows, 0, batch.sizes[0], batch.gain[0])
    return lambda: void(steer_groups_(batch.hidden, batch.residual, batch.probes, groups))


def grouped_bytes(batch: Batch) -> int:
    """Bytes of the CPU path's whole edit, whose weights are float32: G, W2 and W1 forward and back."""
    tokens, size, width = batch.sizes
    weights = 4 * (2 * width * size + 2 * width * width)
    return 3 * tokens * size * batch.hidden.element_size() + weights + 4 * batch.requests * width


def void(_: object) -> None:
    """Discard a result."""


def cpu_token_rows(batch: Batch) -> None:
    token_rows_(
        batch.token_row, batch.gain, batch.positions, batch.query_start_loc, batch.request_rows, batch.rows,
        batch.sizes[0], "torch",
    )  # fmt: skip
