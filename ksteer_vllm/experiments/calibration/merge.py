"""A new calibration of some variants, combined with an earlier one of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ksteer_vllm.bench.suite import EVALUATION
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.errors import listing
from ksteer_vllm.experiments.calibration.record import Calibration

__all__ = ["merged"]

_ALIKE = {
    "temperature": "another temperature",
    "max_tokens": "another max_tokens",
    "metric": "another metric",
    "judge": "another judge",
    "avoid": "another avoid",
    "coherence": "another coherence rule (budget, prompts or seed)",
}


def merged(
    found: Calibration, earlier: Calibration, known: Sequence[Variant], digests: Mapping[str, str]
) -> tuple[Calibration, list[str]]:
    """Add an earlier calibration's cells of other variants to a new one.

    Only cells that were calibrated in the same way, on a probe that has not changed since, are kept.

    Args:
        found: The new calibration.
        earlier: The earlier one, of the same folder.
        known: All variants there are now, in their order.
        digests: Digests of the probes there are now, by name.

    Returns:
        The combined calibration, and notes that say which variants were dropped and why.
    """
    calibrated = {variant.name for variant in found.variants}
    others = [variant for variant in earlier.variants if variant.name not in calibrated]
    reason = _difference(found, earlier)
    kept, notes = [], []
    for variant in others:
        changed = digests.get(variant.probe) != earlier.digests.get(variant.probe)
        why = reason or ("its probe was fitted again, or is gone" if changed else "")
        if not why and variant not in known:
            why = "there is no such variant any more"
        if why:
            notes.append((variant.name, why))
        else:
            kept.append(variant)
    names = {variant.name for variant in kept}
    layers = {name: layer for name, layer in earlier.layers.items() if name in names}
    order = {variant.name: number for number, variant in enumerate(known)}
    cells = [*found.cells, *(cell for cell in earlier.cells if cell.variant in names)]
    whole = found.model_copy(
        update={
            "variants": tuple(sorted([*found.variants, *kept], key=lambda variant: order[variant.name])),
            "digests": found.digests | {variant.probe: digests[variant.probe] for variant in kept},
            "layers": {**found.layers, **layers},
            "cells": tuple(sorted(cells, key=lambda cell: (cell.size, order[cell.variant]))),
        }
    )
    return whole, _told(notes)


def _difference(found: Calibration, earlier: Calibration) -> str:
    """How the settings of an earlier calibration differ; empty if they do not."""
    differing = [why for name, why in _ALIKE.items() if getattr(found, name) != getattr(earlier, name)]
    if found.digests.get(EVALUATION) != earlier.digests.get(EVALUATION):
        differing.append("another evaluation probe")
    return f"calibrated with {listing(differing)}" if differing else ""


def _told(dropped: Sequence[tuple[str, str]]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, why in dropped:
        by_reason.setdefault(why, []).append(name)
    return [
        f"dropped what an earlier calibration found for {listing(names)}: {why}"
        for why, names in by_reason.items()
    ]
