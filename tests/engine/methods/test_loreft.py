"""LoReFT: the subspace is set to what the layer computes, the rest is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ksteer_kernels.reference.loreft import loreft
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
    it, x = probe("loreft"), vectors()
    t, expected = it.at(1), x.double()
    for k, weight in enumerate(weights_of(mix)):
        after = loreft(x.double(), t["rotation"][k], t["weight"][k], t["bias"][k], alpha=alpha)
        expected = expected + weight * (after - x.double())
    actual = steered(it, {**mix, "alpha": alpha}, x)
    assert_close(actual, expected)
    assert_moved(actual, x)


@pytest.mark.parametrize("label", LABELS)
def test_at_alpha_1_the_subspace_holds_w_x_plus_b(label: str) -> None:
    """Rows of R are orthonormal: R x' = W x + b, and x' = x off the subspace."""
    it, x = probe("loreft"), vectors()
    t, k = it.at(1), LABELS.index(label)
    rotation, weight, bias = t["rotation"][k], t["weight"][k], t["bias"][k]
    assert_close(rotation @ rotation.T, torch.eye(len(rotation)))
    after = steered(it, {"target": [label], "alpha": 1}, x).double()
    assert_close(after @ rotation.T, x.double() @ weight.T + bias)
    beside = torch.eye(x.shape[1], dtype=torch.float64) - rotation.T @ rotation
    assert_close(after @ beside, x.double() @ beside)


def test_alpha_0_keeps_the_bits() -> None:
    x = vectors()
    assert torch.equal(steered(probe("loreft"), {"target": ["warm"], "alpha": 0}, x), x)
