"""Write calibrated strengths into the probes, so that requests without a strength use them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.experiments.calibration.plan import Rule
from ksteer_vllm.experiments.calibration.record import Calibration
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject
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

    A method's default is its strength for the smallest combinations of labels. Only variants that amount to
    a request with the method's default settings count. A method without a strength within the budget, or
    whose score there does not beat that of unsteered replies beyond its interval (`Gain`), loses the default
    it had. Where a layer was chosen, all defaults are for one layer: that of the family's first
    method with a strength.

    Args:
        subject: Where the probes are.
        calibration: What was found for them.
        rule: Which of the calibrated strengths to write.
        probes: Names of the probes to change; None: all.

    Returns:
        What was changed, by probe: `default_alpha`, `default_layers`, and `removed`, the methods that lost
        their default.
    """
    written = {}
    for name in dict.fromkeys(variant.probe for variant in calibration.variants):
        variants = [v for v in calibration.variants if v.probe == name and _factor(v) is not None]
        if variants and (probes is None or name in probes):
            probe = Probe.load(subject.paths[name])
            if changes := _changes(probe, variants, calibration, rule):
                alphas = {**probe.metadata.default_alpha, **changes["default_alpha"]}
                kept = {method: alpha for method, alpha in alphas.items() if method not in changes["removed"]}
                layers = {"default_layers": changes["default_layers"]} if "default_layers" in changes else {}
                probe.with_metadata(default_alpha=kept, **layers).save(subject.paths[name])
                written[name] = changes
    return written


def _changes(
    probe: Probe, variants: Sequence[Variant], calibration: Calibration, rule: Rule
) -> dict[str, Any]:
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


def _strength(calibration: Calibration, variant: Variant, layer: int, own: int, rule: Rule) -> float | None:
    """At the smallest combinations tried at a layer, as a default; None if there is none. own: the layer of
    cells that name none."""
    cells = [
        cell
        for cell in calibration.cells
        if cell.variant == variant.name and (own if cell.layer is None else cell.layer) == layer
    ]
    factor = _factor(variant)
    if not cells or factor is None:
        return None
    cell = min(cells, key=lambda cell: cell.size)
    alpha = cell.strength(rule)
    return None if alpha is None else alpha * factor


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
