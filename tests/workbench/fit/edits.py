"""Tasks for the fits that run through the language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksteer_vllm import ModelIdentity
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.fit import FitTask
from testbed.models import HIDDEN_SIZE, NUM_LAYERS

LABELS = ("warm", "dry")


def task_of(model: Path, rows: Sequence[LabelledRow], method: str, **options: Any) -> FitTask:
    """Layer 2 of the tiny llama; no engine is asked what the model is."""
    identity = ModelIdentity(
        name=str(model), model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS
    )
    return FitTask(str(model), identity, rows, LABELS, 2, method, options)
