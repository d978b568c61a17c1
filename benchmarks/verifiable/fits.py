"""Every method fitted to the same rows at the same layers, one probe folder each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.verifiable.ways import LAYER_SETS, WAYS
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.fit.pipeline import fit_to_rows
from ksteer_vllm.probes.metadata import METADATA_FILE

__all__ = ["LAYERS", "fit_all"]

LAYERS = tuple(sorted({layer for layers in LAYER_SETS for layer in layers}))
"""Where probes are fitted."""

_OPTIONS = {"mlp": {"noise": 4.0, "epochs": 12, "width": 256}}


def fit_all(model: str, rows: Sequence[LabelledRow], out: Path, console: Console) -> dict[str, Path]:
    """Leave OUT/probes/METHOD for every method the ways use; what is there is kept.

    Activations are recorded once, under the plain question.

    Returns:
        Method -> folder.
    """
    folders = {}
    for method in dict.fromkeys(way.probe for way in WAYS.values() if way.probe):
        folder = folders[method] = out / "probes" / method
        if (folder / METADATA_FILE).exists():
            continue
        single = any(way.probe == method and way.single_layer for way in WAYS.values())
        probe = fit_to_rows(
            model,
            rows,
            method,
            layer=LAYER_SETS[0][0],
            layers=() if single else LAYERS,
            options=_OPTIONS.get(method),
            folder=out / "activations",
            console=console,
        )
        probe.save(folder)
        console.print(f"fitted: {method}")
    return folders
