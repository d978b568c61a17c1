"""Is what is about to be timed right?"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.kernel_setup import CHECKED_TOKENS, KERNELS, Batch
from ksteer_kernels.reference.mlp import gradient_steps

TOLERANCE = 1e-2
"""RMS of the error over RMS of what is right, as in tests/kernels: a ReLU whose input is of rounding size may
fall on the other side, and bfloat16 rounds the result once."""


def relative_error(found: Tensor, right: Tensor) -> float:
    """RMS of the difference over RMS of what is right."""
    return float((found.double() - right.double()).norm() / right.double().norm())


def check_kernels(batch: Batch, implementation: str) -> dict[str, float]:
    """Errors of each kernel against plain torch on the same input; token rows must be equal.

    Outputs are spoilt beforehand. Raises RuntimeError beyond TOLERANCE.
    """
    mine, right = batch.copy(), batch.copy()
    mine.token_row.fill_(-7)
    for scratch in ("partial", "square", "coefficients", "keep"):
        getattr(mine.workspace, scratch).fill_(torch.nan)
    errors = {}
    for kernel in KERNELS:
        kernel.run(mine, import_module(kernel.module.format(implementation)))
        kernel.run(right, import_module(kernel.module.format("naive")))
        found, expected = kernel.output(mine), kernel.output(right)
        if kernel.name == "token_rows":
            errors[kernel.name] = 0.0 if torch.equal(found, expected) else float("inf")
            continue
        if kernel.name == "expand":
            found, expected = found.double() - batch.hidden, expected.double() - batch.hidden
        errors[kernel.name] = relative_error(found, expected)
    return _passed(errors)


def check_edit(batch: Batch, edit: Callable[[Batch], None]) -> dict[str, float]:
    """Error of whole edits against K-Steering's own loop in float64, on up to CHECKED_TOKENS tokens."""
    mine = batch.copy()
    edit(mine)
    chosen = torch.linspace(0, batch.sizes[0] - 1, min(batch.sizes[0], CHECKED_TOKENS)).long()
    before = batch.hidden.cpu()[chosen].double()
    x = before + batch.residual.cpu()[chosen].double()
    rows = batch.token_row[0].cpu()[chosen].long()
    right = torch.empty_like(x)
    for index, row in enumerate(rows.tolist()):
        steered, _ = gradient_steps(
            x[index : index + 1], batch.weights, batch.rows.label_weights[0, row].cpu().double(),
            alpha=float(batch.rows.strength[0, row]), num_steps=batch.steps, metric=batch.metric,
        )  # fmt: skip
        right[index] = (steered - x[index : index + 1])[0]
    return _passed({"whole edit": relative_error(mine.hidden.cpu()[chosen].double() - before, right)})


def _passed(errors: dict[str, float]) -> dict[str, float]:
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        raise RuntimeError(f"wrong results, nothing is timed: relative errors {wrong}, allowed {TOLERANCE}")
    return errors
