"""One method fitted at one layer or several, and kept; several give one probe with tensors for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ksteer_vllm.data.rows import data_digest
from ksteer_vllm.errors import ProbeError
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import fits, load

__all__ = ["fit_at", "fit_once", "is_fitted", "stack_layers"]

_KEY = "fit_key"
"""In a probe's `training`: names everything the fit depended on."""


def fit_at(task: FitTask, layers: Sequence[int] = ()) -> Probe:
    """Fit the task's method at its layer, or at each of several, whose activations are recorded together.

    Args:
        task: What to fit to what.
        layers: Decoder blocks, from 0; empty: the task's layer.

    Returns:
        A probe. With several layers, requests steer at all of them by default, and its own layer is the
        task's if that is among them, otherwise the middle one.
    """
    fit = load(fits()[task.method])
    wanted = sorted(set(layers)) or [task.layer]
    if len(wanted) == 1:
        only: Probe = fit(replace(task, layer=wanted[0]))
        return only
    reads = {replace(task, layer=layer).read_layer for layer in wanted}
    found = [
        fit(replace(task, layer=layer, layers=tuple(sorted({*task.layers, *reads})))) for layer in wanted
    ]
    return stack_layers(found, task.layer if task.layer in wanted else wanted[len(wanted) // 2])


def stack_layers(probes: Sequence[Probe], layer: int) -> Probe:
    """Probes of one family and labels, ascending by layer, as one; layer: its own, one of theirs.

    Metrics and training are those at `layer`, and of every layer below `layers`. A tensor that the family
    does not require stays if it is there at every layer.
    """
    at = {probe.metadata.layer: probe for probe in probes}
    own = at[layer]

    def of_layers(name: str) -> Mapping[str, Any]:
        return {str(number): getattr(probe.metadata, name) for number, probe in at.items()}

    return Probe(
        own.metadata.model_validate(
            {
                **own.metadata.model_dump(),
                "layers": sorted(at),
                "activation_scale": {
                    number: scale
                    for probe in probes
                    for number, scale in probe.metadata.activation_scale.items()
                },
                "metric_scale": {
                    metric: {
                        number: scale
                        for probe in probes
                        for number, scale in probe.metadata.metric_scale.get(metric, {}).items()
                    }
                    for metric in own.metadata.metric_scale
                },
                "training": {**own.metadata.training, "layers": of_layers("training")},
                "metrics": {**own.metadata.metrics, "layers": of_layers("metrics")},
            }
        ),
        {
            name: torch.stack([at[number].tensors[name] for number in sorted(at)])
            for name in own.tensors
            if all(name in probe.tensors for probe in probes)
        },
    )


def fit_once(task: FitTask, folder: Path, layers: Sequence[int] = ()) -> Path:
    """`fit_at`, saved, unless the folder already holds that fit.

    Args:
        task: What to fit to what.
        folder: The probe folder.
        layers: As of `fit_at`.

    Returns:
        The folder.

    Raises:
        DataError: For rows the method cannot be fitted to.
    """
    if not is_fitted(task, folder, layers):
        probe = fit_at(task, layers)
        probe.with_metadata(training={**probe.metadata.training, _KEY: _key(task, layers)}).save(folder)
    return folder


def is_fitted(task: FitTask, folder: Path, layers: Sequence[int] = ()) -> bool:
    """Whether the folder holds the probe of this very fit.

    Args:
        task: The fit: method, options, rows, labels, positions and model all count.
        folder: A probe folder, or one that may not exist.
        layers: As of `fit_at`.
    """
    try:
        return Probe.load(folder).metadata.training.get(_KEY) == _key(task, layers)
    except ProbeError:
        return False


def _key(task: FitTask, layers: Sequence[int]) -> str:
    what = {
        "method": task.method,
        "options": dict(task.options),
        "rows": data_digest(task.rows),
        "labels": task.labels,
        "layers": sorted(set(layers)) or [task.layer],
        "layer": task.layer,
        "positions": task.window.text,
        "model": task.identity.model_dump(),
        "engine_options": dict(task.engine_options),
        "compat": task.compat,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
