"""What `ksteer inspect` shows of a probe of any family. Needs neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from safetensors.numpy import load

from ksteer_vllm.errors import ProbeError, listing
from ksteer_vllm.probes.metadata import WEIGHTS_FILE, ProbeMetadata, check_shapes, read_verified
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["describe", "heldout_table", "metrics_tables"]

Array = np.ndarray[Any, np.dtype[np.float64]]

_LABELS_SHOWN = 20


def describe(folder: str | Path) -> Iterator[Table]:
    """Facts, held-out metrics, norms and training of a probe folder, as tables to print.

    Args:
        folder: the probe folder; its digest is verified.

    Raises:
        ProbeError: for a folder that cannot be read or does not match its digest.
    """
    metadata, weights = read_verified(folder)
    try:
        tensors = {name: tensor.astype(np.float64) for name, tensor in load(weights).items()}
    except Exception as error:  # of many classes: a header can declare what numpy cannot hold
        raise ProbeError(f"{Path(folder) / WEIGHTS_FILE}: {str(error)[:200]}") from None
    check_shapes(metadata, {name: tensor.shape for name, tensor in tensors.items()})
    yield _facts(metadata, tensors)
    yield from metrics_tables(metadata.metrics)
    yield _norms(metadata, tensors)
    if metadata.training:
        yield _listed("training", {k: v for k, v in metadata.training.items() if k != "layers"})


def metrics_tables(metrics: dict[str, Any]) -> Iterator[Table]:
    """The held-out metrics: per label where the fit read tokens and replies, else as they are."""
    units = [unit for unit in ("tokens", "replies") if unit in metrics]
    for unit in units:
        yield heldout_table(metrics, unit)
    others = {name: value for name, value in metrics.items() if name not in (*units, "layers")}
    if "layers" in metrics:
        yield _by_layer(metrics["layers"])
    if others:
        yield _listed("metrics", others)


def heldout_table(metrics: Mapping[str, Any], unit: str = "tokens") -> Table:
    """A table of the held-out metrics in `probe.json`.

    Args:
        metrics: A probe's, with metrics per label.
        unit: `tokens` or `replies`.
    """
    scores = metrics[unit]
    table = Table(title=f"held-out {unit} ({scores['count']})", title_justify="left")
    table.add_column("label")
    columns = list(scores["mean"])
    for name in (*columns, "positives"):
        table.add_column(name.replace("_", " "), justify="right")
    for label, values in scores["labels"].items():
        table.add_row(label, *(f"{values[name]:.3f}" for name in columns), str(values["positives"]))
    table.add_section()
    table.add_row("mean", *(f"{scores['mean'][name]:.3f}" for name in columns), "")
    return table


def _by_layer(metrics: dict[str, Any]) -> Table:
    """The mean AUROC at every layer of a probe that has several."""
    table = Table(title="held-out AUROC by layer", title_justify="left")
    table.add_column("layer")
    units = [unit for unit in ("tokens", "replies") if all(unit in found for found in metrics.values())]
    for unit in units:
        table.add_column(unit, justify="right")
    for layer, found in metrics.items():
        table.add_row(layer, *(f"{found[unit]['mean']['auroc']:.3f}" for unit in units))
    return table


def _facts(metadata: ProbeMetadata, tensors: Mapping[str, Array]) -> Table:
    model = metadata.model
    blocks = listing(metadata.layers) if metadata.layers else str(metadata.layer)
    rows = {
        "family": f"{metadata.family}; methods {', '.join(metadata.methods)}",
        "labels": listing(metadata.labels, 100),
        "site": f"{metadata.site} of decoder block {blocks} of {model.num_layers}",
        "model": f"{model.name} ({model.model_type}, hidden size {model.hidden_size})",
    }
    if metadata.family == "mlp":
        widths = [len(tensors[name]) for name in ("w1", "w2")]
        rows["hidden layers"] = f"{widths[0]} and {widths[1]}, {metadata.activation}"
    if metadata.default_edit is not None:
        rows["default edit"] = ", ".join(f"{name} {value}" for name, value in metadata.default_edit.items())
    if metadata.label_alpha:
        rows["alpha by label"] = ", ".join(f"{label} {a:.4g}" for label, a in metadata.label_alpha.items())
    rows["default alpha"] = ", ".join(f"{m} {a:.4g}" for m, a in metadata.default_alpha.items()) or "none"
    if metadata.default_where is not None:
        rows["default where"] = str(metadata.default_where)
    for layer, scale in metadata.activation_scale.items():
        rows["activation scale"] = f"{rows.get('activation scale', '')} {scale:.4g} (layer {layer})".strip()
    for metric, scales in metadata.metric_scale.items():
        rows[f"{metric} scale"] = " ".join(f"{scale:.4g} (layer {layer})" for layer, scale in scales.items())
    if metadata.settings:
        rows["settings"] = ", ".join(f"{name} {value}" for name, value in metadata.settings.items())
    rows["digest"] = f"{metadata.digest} (verified)"
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _norms(metadata: ProbeMetadata, tensors: Mapping[str, Array]) -> Table:
    """Shape and norm of every tensor, then of each label's part of those in the residual stream."""
    table = Table(title="norms", title_justify="left")
    table.add_column("tensor")
    table.add_column("shape")
    table.add_column("norm", justify="right")
    for name, tensor in tensors.items():
        table.add_row(name, _shape(tensor.shape), _norm(tensor))
    axis = 1 if metadata.layers else 0
    for name, dimensions in FAMILIES[metadata.family].tensors.items():
        if dimensions.split()[0] != "K" or "d" not in dimensions.split():
            continue
        words = name.replace("_", " ").replace("vectors", "vector").replace("directions", "direction")
        for index, label in enumerate(metadata.labels[:_LABELS_SHOWN]):
            part: Array = np.take(tensors[name], [index], axis).squeeze(axis)
            table.add_row(f"{words} {label}", _shape(part.shape), _norm(part))
        if len(metadata.labels) > _LABELS_SHOWN:
            table.add_row(f"{words} …", f"{len(metadata.labels) - _LABELS_SHOWN} more", "")
    return table


def _norm(tensor: Array) -> str:
    return f"{np.linalg.norm(tensor.ravel()):.4g}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _listed(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in values.items():
        table.add_row(key, str(value))
    return table
