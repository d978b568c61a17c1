"""What `ksteer inspect` shows of a probe of any family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ksteer_vllm.errors import listing
from ksteer_vllm.fit.heldout import heldout_table
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["describe", "metrics_tables"]

_LABELS_SHOWN = 20


def describe(probe: Probe) -> Iterator[Table]:
    """Facts, held-out metrics, norms and training, as tables to print."""
    yield _facts(probe)
    yield from metrics_tables(probe.metadata.metrics)
    yield _norms(probe)
    if probe.metadata.training:
        yield _listed("training", {k: v for k, v in probe.metadata.training.items() if k != "layers"})


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


def _facts(probe: Probe) -> Table:
    metadata, model = probe.metadata, probe.metadata.model
    blocks = listing(metadata.layers) if metadata.layers else str(metadata.layer)
    rows = {
        "family": f"{metadata.family}; methods {', '.join(FAMILIES[metadata.family].methods)}",
        "labels": listing(metadata.labels, 100),
        "site": f"{metadata.site} of decoder block {blocks} of {model.num_layers}",
        "model": f"{model.name} ({model.model_type}, hidden size {model.hidden_size})",
    }
    if metadata.family == "mlp":
        widths = [len(probe.tensors[name]) for name in ("w1", "w2")]
        rows["hidden layers"] = f"{widths[0]} and {widths[1]}, {metadata.activation}"
    rows["default alpha"] = ", ".join(f"{m} {a:.4g}" for m, a in metadata.default_alpha.items()) or "none"
    if metadata.default_where is not None:
        rows["default where"] = str(metadata.default_where)
    for layer, scale in metadata.activation_scale.items():
        rows["activation scale"] = f"{rows.get('activation scale', '')} {scale:.4g} (layer {layer})".strip()
    if metadata.settings:
        rows["settings"] = ", ".join(f"{name} {value}" for name, value in metadata.settings.items())
    rows["digest"] = f"{metadata.digest} (verified)"
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _norms(probe: Probe) -> Table:
    """Shape and norm of every tensor, then of each label's part of those in the residual stream."""
    table = Table(title="norms", title_justify="left")
    table.add_column("tensor")
    table.add_column("shape")
    table.add_column("norm", justify="right")
    for name, tensor in probe.tensors.items():
        table.add_row(name, _shape(tensor.shape), f"{tensor.norm():.4g}")
    axis = 1 if probe.metadata.layers else 0
    for name, dimensions in FAMILIES[probe.metadata.family].tensors.items():
        if dimensions.split()[0] != "K" or "d" not in dimensions.split():
            continue
        words = name.replace("_", " ").replace("vectors", "vector").replace("directions", "direction")
        for index, label in enumerate(probe.labels[:_LABELS_SHOWN]):
            part = probe.tensors[name].select(axis, index)
            table.add_row(f"{words} {label}", _shape(part.shape), f"{part.norm():.4g}")
        if len(probe.labels) > _LABELS_SHOWN:
            table.add_row(f"{words} …", f"{len(probe.labels) - _LABELS_SHOWN} more", "")
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _listed(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in values.items():
        table.add_row(key, str(value))
    return table
