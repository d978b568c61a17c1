"""The strengths a calibration begins with, around what is natural for each way to steer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["PILOT_SHIFT", "has_natural_strength", "log_grid", "towards_shift"]

PILOT_SHIFT = 0.5
"""|x' - x| / |x| at the natural strength of methods whose alpha has no unit of its own."""

_LARGEST_STEP = 1e4


def has_natural_strength(variant: Variant) -> float | None:
    """The natural strength, for methods whose alpha is a share (ACE, LoReFT, ...); None: to be piloted."""
    return FAMILIES[variant.family].methods[variant.method].default_alpha


def log_grid(centre: float, count: int) -> list[float]:
    """`count` strengths a factor 2 apart, ascending, one of them `centre`, half of them below it."""
    return [centre * 2.0 ** (k - count // 2) for k in range(count)]


def towards_shift(alpha: float, shifts: Sequence[float | None]) -> float:
    """The strength that would give PILOT_SHIFT if the shift were proportional to it.

    shifts: |x' - x| / |x| seen at `alpha`, None where there was none.
    """
    seen = [shift for shift in shifts if shift is not None and math.isfinite(shift) and shift > 0]
    if not seen:
        return alpha * _LARGEST_STEP
    factor = PILOT_SHIFT / (sum(seen) / len(seen))
    return alpha * min(max(factor, 1 / _LARGEST_STEP), _LARGEST_STEP)
