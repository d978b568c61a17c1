"""Write calibrated strengths into the probes, so that requests without a strength use them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.experiments.calibration.choose import TOLERANCE
from ksteer_vllm.experiments.calibration.plan import Rule
from ksteer_vllm.experiments.calibration.record import CalibratedCell, Calibration
from ksteer_vllm.experiments.calibration.subject import RANDOM, CalibrationSubject
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["write_defaults"]


def write_defaults(
    subject: CalibrationSubject,
    calibration: Calibration,
    *,
    rule: Rule = "best",
    probes: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make calibrated strengths the defaults of the probes.

    A method's default strength is that for the smallest combinations of labels, of the variant that amounts
    to a request with the method's default settings. A method without a strength within the budget, or whose
    score there does not beat that of unsteered replies beyond its interval (`Gain`), loses the default it
    had. Where a layer was chosen, all defaults are for one layer: that of the family's first method with a
    strength.

    If a variant with settings of its own beats unsteered, and every variant without by more than TOLERANCE,
    it becomes the default edit, whole; otherwise an earlier default edit is removed.

    Args:
        subject: Where the probes are.
        calibration: What was found for them.
        rule: Which of the calibrated strengths to write.
        probes: Names of the probes to change; None: all.

    Returns:
        What was changed, by probe: `default_alpha`, `default_layers`, and `removed`, the methods that lost
        their default; `default_edit`, if there is one or was.
    """
    written = {}
    for name in dict.fromkeys(variant.probe for variant in calibration.variants):
        variants = [v for v in calibration.variants if v.probe == name]
        if probes is None or name in probes:
            probe = Probe.load(subject.paths[name])
            changes = _strengths(probe, [v for v in variants if _factor(v) is not None], calibration, rule)
            edit = _default_edit(probe, variants, calibration, rule)
            if edit is not None or probe.metadata.default_edit is not None:
                changes = {"default_alpha": {}, "removed": [], **changes, "default_edit": edit}
            if changes:
                alphas = {**probe.metadata.default_alpha, **changes["default_alpha"]}
                kept = {method: alpha for method, alpha in alphas.items() if method not in changes["removed"]}
                fields = ("default_layers", "default_edit")
                more = {field: changes[field] for field in fields if field in changes}
                probe.with_metadata(default_alpha=kept, **more).save(subject.paths[name])
                written[name] = changes
    return written


def _strengths(
    probe: Probe, variants: Sequence[Variant], calibration: Calibration, rule: Rule
) -> dict[str, Any]:
    """The strengths of the methods' default settings."""
    if not variants:
        return {}
    methods = list(FAMILIES[probe.metadata.family].methods)
    ordered = sorted(variants, key=lambda variant: methods.index(variant.method))
    own = probe.metadata.layer

    def strength(variant: Variant, layer: int | None) -> float | None:
        return _strength(calibration, variant, own if layer is None else layer, own, rule)

    chosen = [(variant, calibration.layer(variant.name)) for variant in ordered]
    layer = next((at for variant, at in chosen if strength(variant, at) is not None), chosen[0][1])
    alphas = {v.method: alpha for v in ordered if (alpha := strength(v, layer)) is not None}
    removed = [
        v.method for v in ordered if v.method in probe.metadata.default_alpha and v.method not in alphas
    ]
    if not alphas and not removed:
        return {}
    changes: dict[str, Any] = {"default_alpha": alphas, "removed": removed}
    return changes if layer is None or not alphas else {**changes, "default_layers": (layer,)}


def _default_edit(
    probe: Probe, variants: Sequence[Variant], calibration: Calibration, rule: Rule
) -> dict[str, Any] | None:
    """The edit of the best variant that steers, if it has settings and those without do not come near."""
    own = probe.metadata.layer
    found: list[tuple[float, bool, dict[str, Any]]] = []
    for variant in variants:
        layer = calibration.layer(variant.name)
        cell = _smallest(calibration, variant, own if layer is None else layer, own)
        alpha = None if cell is None else cell.strength(rule)
        point = None if cell is None else cell.at(alpha)
        if variant.method == RANDOM or alpha is None or point is None:
            continue
        at = {} if layer is None else {"layers": [layer]}
        edit = {"method": variant.method, "alpha": alpha, **at, **variant.settings}
        found.append((point.score, _factor(variant) is not None, edit))
    if not found:
        return None
    best = max(score for score, _, _ in found)
    if any(plain and score >= best - TOLERANCE for score, plain, _ in found):
        return None
    return next(edit for score, _, edit in found if score == best)


def _strength(calibration: Calibration, variant: Variant, layer: int, own: int, rule: Rule) -> float | None:
    """At the smallest combinations tried at a layer, as a default; None if there is none. own: the layer of
    cells that name none."""
    cell, factor = _smallest(calibration, variant, layer, own), _factor(variant)
    if cell is None or factor is None:
        return None
    alpha = cell.strength(rule)
    return None if alpha is None else alpha * factor


def _smallest(calibration: Calibration, variant: Variant, layer: int, own: int) -> CalibratedCell | None:
    """The cell of the smallest combinations tried at a layer."""
    cells = [
        cell
        for cell in calibration.cells
        if cell.variant == variant.name and (own if cell.layer is None else cell.layer) == layer
    ]
    return min(cells, key=lambda cell: cell.size, default=None)


def _factor(variant: Variant) -> float | None:
    """The factor on the strength for a request without settings to do the same; None if none can.

    n steps of a linear probe's gradient are n times one step.
    """
    settings: Mapping[str, Any] = variant.settings
    if not settings:
        return 1.0
    if variant.family == "linear" and set(settings) == {"num_steps"}:
        return float(settings["num_steps"]) / float(Edit.model_fields["num_steps"].default)
    return None
