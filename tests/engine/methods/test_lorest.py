"""LoReST: the chosen directions are emptied, then the shift is added."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ksteer_kernels.reference.lorest import lorest
from tests.engine.methods.steering import (
    LABELS,
    TARGETS,
    assert_close,
    assert_moved,
    probe,
    steered,
    vectors,
    weights_of,
)


@pytest.mark.parametrize("alpha", [1.0, 0.3, -1.0])
@pytest.mark.parametrize("mix", TARGETS, ids=str)
def test_it_is_the_weighted_sum_of_the_definitions(mix: dict[str, Any], alpha: float) -> None:
    it, x = probe("lorest"), vectors()
    t, expected = it.at(1), x.double()
    for k, weight in enumerate(weights_of(mix)):
        after = lorest(x.double(), t["basis"][k], t["removed"][k], t["bias"][k], alpha=alpha)
        expected = expected + weight * (after - x.double())
    actual = steered(it, {**mix, "alpha": alpha}, x)
    assert_close(actual, expected)
    assert_moved(actual, x)


@pytest.mark.parametrize("label", LABELS)
def test_at_alpha_1_only_the_shift_is_left_in_the_removed_directions(label: str) -> None:
    """Q_p^T (x' - b) = 0 on the removed rows; everywhere else x' = x + b."""
    it, x = probe("lorest"), vectors()
    t, k = it.at(1), LABELS.index(label)
    removed = t["basis"][k][t["removed"][k] > 0]
    assert 0 < len(removed) <= len(t["basis"][k])
    shifted = steered(it, {"target": [label], "alpha": 1}, x).double() - t["bias"][k]
    assert_close(shifted @ removed.T, torch.zeros(len(x), len(removed)))
    beside = torch.eye(x.shape[1], dtype=torch.float64) - removed.T @ removed
    assert_close(shifted @ beside, x.double() @ beside)


def test_alpha_0_keeps_the_bits() -> None:
    x = vectors()
    assert torch.equal(steered(probe("lorest"), {"target": ["warm"], "alpha": 0}, x), x)
