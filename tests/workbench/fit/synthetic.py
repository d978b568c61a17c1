"""Fit tasks on made-up activations: no engine, no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ksteer_vllm import ModelIdentity
from ksteer_vllm.data.positions import REPLY, Window
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.fit import Activations, FitTask

D, ROWS, TOKENS = 12, 120, 6
LABELS = ("warm", "dry")
MODEL = ModelIdentity(name="synthetic", model_type="llama", hidden_size=D, num_layers=4)


def synthetic_rows(count: int = ROWS, seed: int = 0) -> list[LabelledRow]:
    """Rows that show each label half of the time; every prompt once."""
    rng = np.random.default_rng(seed)
    shown = rng.random((count, len(LABELS))) < 0.5
    return [
        LabelledRow(
            prompt=f"q{index}",
            reply="r",
            labels=tuple(label for label, here in zip(LABELS, flags, strict=True) if here),
        )
        for index, flags in enumerate(shown)
    ]


def synthetic_task(
    method: str,
    rows: list[LabelledRow] | None = None,
    *,
    window: Window = REPLY,
    labels: tuple[str, ...] = LABELS,
    start: int = 0,
    lengths: int | list[int] = TOKENS,
    **options: Any,
) -> FitTask:
    """A task whose activations are Gaussian around a mean that depends on the labels of the row."""
    rows = synthetic_rows() if rows is None else rows
    lengths = [lengths] * len(rows) if isinstance(lengths, int) else lengths
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(len(labels), D, generator=generator)
    row = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    shown = torch.tensor([[float(label in one.labels) for label in labels] for one in rows])
    x = 3 + shown[row] @ directions + torch.randn(len(row), D, generator=generator)
    position = torch.cat([torch.arange(start, start + length) for length in lengths])
    recorded = {window: Activations({2: x}, row, position, MODEL)}
    return FitTask("synthetic", MODEL, rows, labels, 2, method, options=options, recorded=recorded)
