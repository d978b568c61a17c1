"""Variants at their calibrated strengths."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.errors import ConfigError, listing
from ksteer_vllm.evaluate.plan import EvaluationPlan
from ksteer_vllm.evaluate.settings import Setting
from ksteer_vllm.study.variants import Variant
from ksteer_vllm.sweep.calibration import Calibration

__all__ = ["calibrated_settings", "chosen_variants"]


def chosen_variants(variants: Sequence[Variant], wanted: Sequence[str]) -> list[Variant]:
    """Those named, by their own name or their artifact's; all if nothing is named.

    Raises ConfigError for a name that none has.
    """
    known = {variant.name for variant in variants} | {variant.artifact for variant in variants}
    if unknown := [name for name in wanted if name not in known]:
        names = listing(variant.name for variant in variants)
        raise ConfigError(f"variants: {listing(unknown)} was not calibrated; calibrated are: {names}")
    return [v for v in variants if not wanted or v.name in wanted or v.artifact in wanted]


def calibrated_settings(
    variants: Sequence[Variant], calibration: Calibration, plan: EvaluationPlan
) -> tuple[list[Setting], list[str]]:
    """Every variant with its strength per size, and in words which have none for which size.

    The random direction runs at the strength of the vectors whose norms it has, where those are calibrated.
    Raises ConfigError for a size that was not calibrated, or if strengths are for another `avoid`.
    """
    if calibration.avoid != plan.avoid:
        raise ConfigError(
            f"avoid: {plan.avoid!r}, but the strengths were calibrated with {calibration.avoid!r}; "
            f"run `ksteer sweep` with --avoid {plan.avoid}"
        )
    found, without = [], []
    for variant in variants:
        like = _strength_of(variant, calibration)
        if like is None:
            without.append(f"{variant.name} (not calibrated)")
            continue
        alphas = {size: calibration.alpha(like, size, rule=plan.strength) for size in plan.sizes}
        none = [str(size) for size, alpha in alphas.items() if alpha is None]
        if none:
            without.append(f"{variant.name} (no strength within the budget at size {', '.join(none)})")
        alpha = {size: value for size, value in alphas.items() if value is not None}
        if alpha:
            found.append(Setting(variant, alpha, calibration.layer(like)))
    return found, without


def _strength_of(variant: Variant, calibration: Calibration) -> str | None:
    """The name under which the variant's strength is found."""
    calibrated = {cell.variant for cell in calibration.cells}
    if variant.method == "random":
        for other in calibration.variants:
            same = (other.artifact, other.settings) == (variant.artifact, variant.settings)
            if same and other.method == "add" and other.name in calibrated:
                return other.name
    return variant.name if variant.name in calibrated else None
