"""Plateaus, brackets and bisection on known functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ksteer_vllm.experiments.calibration.bisect import PRECISION, bracket, largest_coherent, next_strengths
from ksteer_vllm.experiments.calibration.choose import best_strength, middle, plateau
from ksteer_vllm.experiments.calibration.grid import PILOT_SHIFT, log_grid, towards_shift


def test_a_plateau_is_unbroken_and_within_the_tolerance() -> None:
    scores = {1.0: 0.9, 2.0: 0.5, 4.0: 0.89, 8.0: 0.9, 16.0: 0.881, 32.0: 0.87}
    assert plateau(scores) == [1.0]
    scores[1.0] = 0.85
    assert plateau(scores) == [4.0, 8.0, 16.0]
    assert middle([4.0, 8.0, 16.0]) == 8.0
    scores = {0.25: 0.2, 0.5: 0.97, 1.0: 0.99, 2.0: 0.98, 4.0: 0.9, 8.0: 0.98}
    assert plateau(scores) == [0.5, 1.0, 2.0]
    assert middle(plateau(scores)) == 1.0


def test_the_best_strength_is_the_middle_of_the_coherent_part_of_the_plateau() -> None:
    scores = dict.fromkeys((1.0, 2.0, 4.0, 8.0, 16.0), 1.0)
    assert best_strength(scores, {alpha: True for alpha in scores}) == 4.0
    assert best_strength(scores, {alpha: alpha < 5 for alpha in scores}) == 2.0
    assert best_strength(scores, {alpha: False for alpha in scores}) is None


def test_a_grid_is_a_factor_two_apart_around_its_centre() -> None:
    assert log_grid(1.0, 8) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]


def search(
    coherent: Callable[[float], bool], score: Callable[[float], float], rounds: int
) -> dict[float, bool]:
    grid = log_grid(1.0, 8)
    tried = {alpha: coherent(alpha) for alpha in grid}
    for _ in range(rounds):
        wanted = next_strengths({a: score(a) for a in tried}, tried, (grid[0], grid[-1]))
        if not wanted:
            break
        assert not set(wanted) & set(tried), "nothing twice"
        tried |= {alpha: coherent(alpha) for alpha in wanted}
    return tried


@pytest.mark.parametrize("limit", [0.07, 0.3, 1.7, 3.99, 4.01, 7.5])
def test_bisection_halves_the_octave_around_the_limit_each_round(limit: float) -> None:
    tried = search(lambda alpha: alpha <= limit, lambda alpha: alpha, 3)
    found, beyond = bracket(tried) or (math.nan, math.nan)
    assert found <= limit < beyond
    assert beyond / found == pytest.approx(2 ** (1 / 8))
    assert largest_coherent(tried) == found


def test_bisection_ends_at_its_precision() -> None:
    tried = search(lambda alpha: alpha <= 3.3, lambda alpha: alpha, 50)
    low, high = bracket(tried) or (math.nan, math.nan)
    assert high / low <= PRECISION
    assert len(tried) < 8 + 8


def test_a_grid_that_is_incoherent_throughout_goes_down_and_then_in() -> None:
    tried = search(lambda alpha: alpha <= 0.02, lambda alpha: alpha, 4)
    low, high = bracket(tried) or (math.nan, math.nan)
    assert low <= 0.02 < high
    assert high / low < 2


def test_a_grid_whose_best_is_its_lowest_goes_down() -> None:
    tried = search(lambda alpha: alpha <= 2.5, lambda alpha: -abs(math.log(alpha / 0.02)), 3)
    assert min(tried) <= 0.02


def test_a_grid_that_is_coherent_throughout_goes_up() -> None:
    tried = search(lambda alpha: alpha <= 30, lambda alpha: alpha, 3)
    low, high = bracket(tried) or (math.nan, math.nan)
    assert low <= 30 < high


def test_what_is_never_coherent_or_always_ends_too() -> None:
    never = search(lambda alpha: False, lambda alpha: 0.0, 50)
    assert largest_coherent(never) is None
    assert min(never) == pytest.approx(2.0**-8)
    always = search(lambda alpha: True, lambda alpha: alpha, 50)
    assert bracket(always) is None
    assert max(always) == pytest.approx(2.0**7)


def test_the_natural_strength_is_that_of_the_wanted_shift() -> None:
    assert towards_shift(2.0, [0.1, None, 0.3]) == pytest.approx(2.0 * PILOT_SHIFT / 0.2)
    assert towards_shift(2.0, [None, 0.0]) > 1e3
    assert towards_shift(2.0, [math.inf]) > 1e3
