"""Matching strengths to a displacement, on known functions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from ksteer_vllm.experiments.evaluation.matching import TOLERANCE, closest, match_strengths, next_strength

FUNCTIONS = {
    "linear": lambda alpha: 0.02 * alpha,
    "saturating": lambda alpha: 0.8 * math.tanh(3 * alpha),
    "with a floor": lambda alpha: 0.1 + 0.5 * alpha**2,
    "quadratic": lambda alpha: 40 * alpha**2,
}


def test_finds_the_strength_of_a_displacement_in_few_rounds() -> None:
    calls = []

    def displacement(strengths: Mapping[str, float]) -> dict[str, float]:
        calls.append(list(strengths))
        return {name: FUNCTIONS[name](alpha) for name, alpha in strengths.items()}

    wanted = dict.fromkeys(FUNCTIONS, 0.3)
    found = match_strengths(dict.fromkeys(FUNCTIONS, 1.0), wanted, displacement, rounds=6)
    for name, (alpha, moved) in found.items():
        assert moved == FUNCTIONS[name](alpha)
        assert moved == pytest.approx(0.3, rel=TOLERANCE), name
    assert len(calls) <= 6
    assert len(calls[-1]) < len(FUNCTIONS), "what is matched is not tried again"


def test_what_cannot_move_as_far_ends_where_it_comes_closest() -> None:
    found = match_strengths({"a": 1.0}, {"a": 0.9}, lambda s: {"a": 0.8 * math.tanh(3 * s["a"])})
    assert found["a"][1] == pytest.approx(0.8, rel=0.01)
    found = match_strengths({"a": 1.0}, {"a": 0.05}, lambda s: {"a": 0.1 + s["a"]})
    assert 0.1 < found["a"][1] < 0.11


def test_next_strength() -> None:
    assert next_strength([(1.0, 0.3)], 0.3) is None
    assert next_strength([(1.0, 0.1)], 0.3) == pytest.approx(3.0)
    assert next_strength([(1.0, 30.0)], 0.3) == pytest.approx(1 / 8)
    assert next_strength([(1.0, 0.0)], 0.3) == 8.0
    assert next_strength([(4.0, 0.9), (1.0, 0.1)], 0.3) == pytest.approx(2.0)
    assert closest([(1.0, 0.1), (2.0, 0.4)], 0.3) == (2.0, 0.4)
