"""A task whose activations are at hand, made up: each label is a direction."""

from __future__ import annotations

from typing import Any

import torch

from ksteer_vllm import ModelIdentity
from ksteer_vllm.data.positions import REPLY
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.fit import Activations, FitTask

LABELS = ("warm", "dry")
HIDDEN_SIZE = 16
_TOKENS = 5


def recorded_task(method: str, *, num_rows: int = 400, overlap: float = 0.0, **options: Any) -> FitTask:
    """Five tokens a row; no engine starts. The labels' directions are 4 long, noise is 0.3 a coordinate;
    overlap: part of the first direction that is also in the second."""
    generator = torch.Generator().manual_seed(0)
    model = ModelIdentity(name="made-up", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=4)
    shown = torch.rand(num_rows, len(LABELS), generator=generator) < 0.5
    rows = [
        LabelledRow(
            prompt=f"question {index}",
            reply="reply",
            labels=tuple(label for label, shows in zip(LABELS, of_row, strict=True) if shows),
        )
        for index, of_row in enumerate(shown.tolist())
    ]
    basis = torch.linalg.qr(torch.randn(HIDDEN_SIZE, len(LABELS) + 1, generator=generator)).Q.T
    directions, offset = 4 * basis[:-1], 3 * basis[-1]
    directions[1] += overlap * directions[0]
    row = torch.arange(num_rows).repeat_interleave(_TOKENS)
    noise = 0.3 * torch.randn(len(row), HIDDEN_SIZE, generator=generator)
    x = offset + shown.float()[row] @ directions + noise
    activations = Activations({2: x}, row, torch.arange(_TOKENS).repeat(num_rows), model)
    return FitTask("made-up", model, rows, LABELS, 2, method, options, recorded={REPLY: activations})
