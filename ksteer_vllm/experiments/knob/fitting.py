"""The probe of a knob: one MLP at each of several layers, in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.experiments.knob.plan import KnobPlan
from ksteer_vllm.fit.linear_control import with_linear_control
from ksteer_vllm.fit.pipeline import few_threads
from ksteer_vllm.fit.stacking import fit_once
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["aurocs", "fit_knob"]

_ACTIVATIONS = "activations"


def fit_knob(
    model: str,
    rows: Sequence[LabelledRow],
    labels: Sequence[str],
    plan: KnobPlan,
    folder: Path,
    *,
    engine_options: Mapping[str, Any],
    progress: Progress,
) -> Path:
    """Fit the probe to the rows, unless the folder already holds the very same fit.

    Args:
        model: A folder, or a name on the hub.
        rows: Labelled text, under plain questions.
        labels: The labels, in their order.
        plan: Layers and options of the fit.
        folder: Where the uncalibrated probe and, meanwhile, the activations are kept.
        engine_options: Further arguments of `vllm.LLM`.
        progress: Where progress is shown.

    Returns:
        The folder of the probe.

    Raises:
        DataError: For rows a probe cannot be fitted to.
    """
    task = FitTask.of(
        model,
        rows,
        "mlp",
        labels=labels,
        options=plan.fit_options(),
        engine_options=engine_options,
        progress=progress,
        folder=folder / _ACTIVATIONS,
    )
    layers = plan.layers_of(task.identity.num_layers)
    with few_threads(task.identity):
        path = fit_once(task, folder / "fit", layers)
        if task.recorded:
            with_linear_control(task, Probe.load(path)).save(path)
    shutil.rmtree(folder / _ACTIVATIONS, ignore_errors=True)
    return path


def aurocs(probe: Probe) -> dict[str, dict[int, float]]:
    """Label -> layer -> AUROC on the held-out replies of the fit."""
    layers = probe.metadata.layers or (probe.metadata.layer,)
    metrics = probe.metadata.metrics
    at = {layer: metrics["layers"][str(layer)] if probe.metadata.layers else metrics for layer in layers}
    return {
        label: {layer: float(found["replies"]["labels"][label]["auroc"]) for layer, found in at.items()}
        for label in probe.labels
    }
