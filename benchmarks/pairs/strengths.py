"""Strengths: a grid for every variant around its natural one, and one rule that chooses from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.pairs.engine import Ask, Bank
from benchmarks.pairs.environment import Pair
from ksteer_vllm.bench.variants import STANDARD, Variant

__all__ = ["RULE", "choose", "grids", "spec_of", "variants_for"]

RULE = (
    "per variant and number of behaviours, on the calibration pairs: of the strengths whose off-target "
    "change is at most the budget, the one whose words are nearest to the target words, the lowest of "
    "equals; if none is, the one with the least off-target change. The budget is the off-target change that "
    "the contexts themselves make"
)

_NEAR_ONE = tuple(2.0 ** (k / 2) for k in range(-5, 4))
"""For methods whose natural strength is 1: they were fitted to be used at it."""

_LENGTHS = tuple(2.0 ** (k / 2) for k in range(-6, 6))
"""For the others: |x' - x| / |x|, as it would be if the edit were linear in the strength."""

_PROBED = 1e-3
"""The strength at which the linear scale is measured."""


def variants_for(probes: Sequence[str]) -> list[Variant]:
    """The standard ways to steer with these probes in the raw metric, K-Steering first, the random control
    last."""
    return [variant for variant in STANDARD if variant.probe in probes and "metric" not in variant.settings]


def spec_of(
    variant: Variant, pair: Pair, behaviours: Sequence[str], alpha: float, avoid_rest: bool
) -> dict[str, Any]:
    """Towards the behaviours the pair's context asks for; with avoid_rest, away from all others."""
    rest = [name for name in behaviours if name not in pair.targets] if avoid_rest else []
    return variant.spec(pair.targets, rest, alpha)


def grids(
    bank: Bank,
    variants: Sequence[Variant],
    pairs: Sequence[Pair],
    behaviours: Sequence[str],
    avoid_rest: bool,
) -> dict[str, tuple[float, ...]]:
    """variant -> strengths, ascending; `pairs`: those on which lengths are measured."""
    scaled = [variant for variant in variants if variant.family in ("mlp", "linear", "vectors")]
    asks = [
        Ask(pair, spec_of(variant, pair, behaviours, _PROBED, avoid_rest))
        for variant in scaled
        for pair in pairs
    ]
    found = {variant.name: _NEAR_ONE for variant in variants}
    shifts = bank.shift(asks)
    for index, variant in enumerate(scaled):
        own = shifts[index * len(pairs) : (index + 1) * len(pairs)]
        per_unit = sum(own) / len(own) / _PROBED
        found[variant.name] = tuple(length / per_unit for length in _LENGTHS)
    return found


def choose(points: pd.DataFrame, budgets: Mapping[int, float]) -> pd.DataFrame:
    """The chosen row per variant and size, see `RULE`.

    points: columns variant, size, alpha, off_target, similarity. budgets: size -> off-target change.
    """
    rows = []
    for (_, size), own in points.groupby(["variant", "size"], sort=False):
        within = own[own["off_target"] <= budgets[int(size)]]
        if within.empty:
            rows.append(own.loc[own["off_target"].idxmin()])
        else:
            best = within[within["similarity"] == within["similarity"].max()]
            rows.append(best.loc[best["alpha"].idxmin()])
    return pd.DataFrame(rows).reset_index(drop=True)
