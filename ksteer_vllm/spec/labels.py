"""Label weights in a spec: a list of labels, or label -> weight, normalised to sum 1 within their side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from ksteer_vllm.errors import listing

__all__ = ["FeatureValues", "LabelWeights", "finite_float"]

MAX_LABELS_PER_SIDE = 1024
MAX_MAGNITUDE = 1e12
"""Far beyond any useful value; keeps float32 sums over steps finite."""


def finite_float(value: Any) -> float:
    """A number as a float, -0.0 as 0.0. Raises ValueError unless it is finite and at most MAX_MAGNITUDE in
    magnitude."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > MAX_MAGNITUDE:
        raise ValueError(f"must be a finite number of magnitude at most {MAX_MAGNITUDE:g}")
    return number + 0.0


def _label_weights(value: Any) -> Any:
    if value is None:
        return {}
    if isinstance(value, (list, tuple)) and all(isinstance(label, str) for label in value):
        if len(set(value)) != len(value):
            repeated = sorted({label for label in value if value.count(label) > 1})
            raise ValueError(f"label named twice: {listing(repeated)}")
        value = dict.fromkeys(value, 1.0)
    weights = _numbers(value, "weight", "expected a list of label names or an object of label -> weight")
    for label, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight of {label!r} must be finite and > 0, got {weight}")
    return _normalised(weights)


def _feature_values(value: Any) -> Any:
    if value is None:
        return {}
    values = _numbers(value, "value", "expected an object of label -> activation")
    for label, number in values.items():
        if not abs(number) <= MAX_MAGNITUDE:
            raise ValueError(f"value of {label!r} must be finite and at most {MAX_MAGNITUDE:g}, got {number}")
    return values


def _numbers(value: Any, what: str, expected: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError(expected)
    if len(value) > MAX_LABELS_PER_SIDE:
        raise ValueError(f"at most {MAX_LABELS_PER_SIDE} labels, got {len(value)}")
    numbers = {}
    for label, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"{what} of {label!r} must be a number, got {type(number).__name__}")
        try:
            numbers[str(label)] = float(number) + 0.0
        except OverflowError:
            numbers[str(label)] = math.inf
    return numbers


def _normalised(weights: dict[str, float]) -> dict[str, float]:
    try:
        total = math.fsum(weights.values())
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise ValueError("the sum of the weights is not finite")
    if not weights or math.isclose(total, 1.0, rel_tol=1e-12):  # keep a canonical spec as it is
        return weights
    normalised = {label: weight / total for label, weight in weights.items()}
    if min(normalised.values()) <= 0:
        raise ValueError("weights differ by more than double precision can represent")
    return normalised


LabelWeights = Annotated[dict[str, float], BeforeValidator(_label_weights)]
FeatureValues = Annotated[dict[str, float], BeforeValidator(_feature_values)]
