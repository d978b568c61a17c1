"""Variants at their calibrated strengths."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.errors import UsageError, choices, listing
from ksteer_vllm.experiments.calibration.record import Calibration
from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan
from ksteer_vllm.experiments.evaluation.settings import Setting

__all__ = ["calibrated_settings", "chosen_variants", "planned"]


def chosen_variants(variants: Sequence[Variant], wanted: Sequence[str]) -> list[Variant]:
    """The variants to evaluate.

    Args:
        variants: All there are.
        wanted: Names of variants, or of probes, which stand for all their variants; empty: all.

    Raises:
        UsageError: For an unknown name.
    """
    known = {variant.name for variant in variants} | {variant.probe for variant in variants}
    if unknown := [name for name in wanted if name not in known]:
        names = choices(unknown[0], (variant.name for variant in variants), 40)
        raise UsageError(f"variants: unknown {listing(map(repr, unknown))}; there are: {names}")
    return [v for v in variants if not wanted or v.name in wanted or v.probe in wanted]


def planned(plan: EvaluationPlan, calibration: Calibration) -> EvaluationPlan:
    """Complete a plan: sizes, avoid, temperature and max_tokens default to those of the calibration.

    Args:
        plan: The plan.
        calibration: What the suite's calibration found.

    Raises:
        UsageError: For a size that was not calibrated, or another avoid or sampling, since the strengths and
            the coherence rule hold for those of the calibration only.
    """
    calibrated = sorted({cell.size for cell in calibration.cells})
    if "sizes" not in plan.model_fields_set:
        plan = plan.model_copy(update={"sizes": tuple(calibrated)})
    if new := sorted(set(plan.sizes) - set(calibrated)):
        raise UsageError(
            f"sizes: {listing(new)} was not calibrated, only {listing(calibrated)}; leave the others out, or "
            f"run `ksteer calibrate` with --sizes {','.join(map(str, sorted({*calibrated, *new})))}"
        )
    for field in ("avoid", "temperature", "max_tokens"):
        wanted, found = getattr(plan, field), getattr(calibration, field)
        if field not in plan.model_fields_set:
            plan = plan.model_copy(update={field: found})
        elif wanted != found:
            raise UsageError(
                f"{field}: {wanted!r}, but the strengths were calibrated with {found!r}; leave it out, or "
                f"run `ksteer calibrate` with --{field.replace('_', '-')} {wanted}"
            )
    return plan


def calibrated_settings(
    variants: Sequence[Variant], calibration: Calibration, plan: EvaluationPlan
) -> tuple[list[Setting], list[str]]:
    """Every variant with its strength per size, and notes on which variants have none for which size.

    The random direction runs at the strength of the vectors whose norms it has, where those are calibrated.
    plan: as `planned`, so that its sizes were calibrated.
    """
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
            same = (other.probe, other.settings) == (variant.probe, variant.settings)
            if same and other.method == "add" and other.name in calibrated:
                return other.name
    return variant.name if variant.name in calibrated else None
