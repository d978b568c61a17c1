"""Calibrated strengths into the artifacts, so that requests without a strength use them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ksteer_vllm.artifact import Artifact
from ksteer_vllm.edit import Edit
from ksteer_vllm.methods import FAMILIES
from ksteer_vllm.study.variants import Variant
from ksteer_vllm.sweep.calibration import Calibration, Cell, Rule
from ksteer_vllm.sweep.subject import Subject

__all__ = ["write_defaults"]


def write_defaults(
    subject: Subject,
    calibration: Calibration,
    *,
    rule: Rule = "best",
    artifacts: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Give every artifact the strengths of its variants for their smallest combinations, and, where a layer
    was chosen, one layer that all of them are for: that of the family's first method with a strength.

    Only variants that are a request with the method's default settings count, or amount to one. A method
    that has no strength within the budget there loses the one it had. artifacts: names; None: all. Returns
    what was changed, by artifact: default_alpha, default_layers, and as `removed` the methods without.
    """
    written = {}
    for name in subject.paths:
        variants = [v for v in calibration.variants if v.artifact == name and _factor(v) is not None]
        if variants and (artifacts is None or name in artifacts):
            artifact = Artifact.load(subject.paths[name])
            if changes := _changes(artifact, variants, calibration, rule):
                alphas = {**artifact.metadata.default_alpha, **changes["default_alpha"]}
                kept = {method: alpha for method, alpha in alphas.items() if method not in changes["removed"]}
                layers = {"default_layers": changes["default_layers"]} if "default_layers" in changes else {}
                artifact.with_metadata(default_alpha=kept, **layers).save(subject.paths[name])
                written[name] = changes
    return written


def _changes(
    artifact: Artifact, variants: Sequence[Variant], calibration: Calibration, rule: Rule
) -> dict[str, Any]:
    methods = list(FAMILIES[artifact.metadata.family].methods)
    ordered = sorted(variants, key=lambda variant: methods.index(variant.method))
    own = artifact.metadata.layer
    places = [calibration.layer(variant.name) for variant in ordered]
    strengths = {
        (variant.name, place): _strength(calibration, variant, place, own, rule)
        for variant in ordered
        for place in places
    }
    first = next((p for v, p in zip(ordered, places, strict=True) if strengths[v.name, p] is not None), None)
    alphas = {}
    for variant in ordered:
        alpha = strengths[variant.name, first if first is not None else calibration.layer(variant.name)]
        if alpha is not None:
            alphas.setdefault(variant.method, alpha)
    had = artifact.metadata.default_alpha
    removed = [v.method for v in ordered if v.method in had and v.method not in alphas]
    if not alphas and not removed:
        return {}
    changes: dict[str, Any] = {"default_alpha": alphas, "removed": list(dict.fromkeys(removed))}
    return changes if first is None or not alphas else {**changes, "default_layers": (first,)}


def _strength(
    calibration: Calibration, variant: Variant, layer: int | None, own: int, rule: Rule
) -> float | None:
    """At the smallest combinations tried at a layer, as a default; None if there is none. own: what a cell
    without a layer is for."""
    wanted = own if layer is None else layer
    cells: list[Cell] = [
        cell
        for cell in calibration.cells
        if cell.variant == variant.name and (own if cell.layer is None else cell.layer) == wanted
    ]
    factor = _factor(variant)
    if not cells or factor is None:
        return None
    cell = min(cells, key=lambda cell: cell.size)
    alpha = cell.best if rule == "best" else cell.largest_coherent
    return None if alpha is None else alpha * factor


def _factor(variant: Variant) -> float | None:
    """What to multiply the strength with so that a request without settings does the same; None if none can.

    n steps of a linear probe's gradient are n times one step.
    """
    settings: Mapping[str, Any] = variant.settings
    if not settings:
        return 1.0
    if variant.family == "linear" and set(settings) == {"num_steps"}:
        return float(settings["num_steps"]) / float(Edit.model_fields["num_steps"].default)
    return None
