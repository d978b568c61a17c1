"""Affine concept editing and directional ablation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_kernels.reference import ace as reference
from ksteer_vllm.probes.probe import Probe
from tests.engine.methods.steering import (
    LABELS,
    MIXES,
    assert_close,
    assert_moved,
    probe,
    steered,
    vectors,
    weights_of,
)


def unit(it: Probe, label: str) -> Tensor:
    return torch.nn.functional.normalize(it.at(1)["directions"], dim=1)[LABELS.index(label)]


def off_axis(x: Tensor, axis: Tensor) -> Tensor:
    """What is left of x without its component along a unit vector."""
    return x.double() - (x.double() @ axis)[:, None] * axis


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.7, 2.5])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_ace_is_the_weighted_sum_of_the_definitions(mix: dict[str, Any], alpha: float) -> None:
    """An avoid label is sent to where its negatives are, whatever alpha."""
    it, x = probe("ace"), vectors()
    t, expected = it.at(1), x.double()
    for r, a0, weight in zip(t["directions"], t["negatives_mean"], weights_of(mix), strict=True):
        after = reference.ace(x.double(), r, a0, alpha=alpha if weight > 0 else 0.0)
        expected = expected + weight.abs() * (after - x.double())
    actual = steered(it, {**mix, "alpha": alpha}, x)
    assert_close(actual, expected)
    assert_moved(actual, x, 1e-3)


@pytest.mark.parametrize(("alpha", "positives"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_component_is_put_at_the_negatives_or_the_positives_mean(alpha: float, positives: float) -> None:
    """directions is mean(positives) - mean(negatives), so alpha 1 is the positives' mean itself."""
    it, x = probe("ace"), vectors()
    axis, t = unit(it, "cold"), it.at(1)
    wanted = (t["negatives_mean"][1] + positives * t["directions"][1]) @ axis
    after = steered(it, {"target": ["cold"], "alpha": alpha}, x)
    assert_close(after.double() @ axis, wanted.expand(len(x)))
    assert_close(off_axis(after, axis), off_axis(x, axis))
    assert float((x.double() @ axis - wanted).abs().min()) > 1e-3, "it was not there before"


def test_avoiding_a_label_puts_its_component_at_the_negatives_mean() -> None:
    it, x = probe("ace"), vectors()
    axis = unit(it, "dry")
    after = steered(it, {"avoid": ["dry"], "alpha": 3.0}, x)
    assert_close(after.double() @ axis, (it.at(1)["negatives_mean"][2] @ axis).expand(len(x)))


def test_ablate_removes_the_component_and_nothing_else() -> None:
    it, x = probe("ace"), vectors()
    axis, fields = unit(it, "cold"), {"avoid": ["cold"], "method": "ablate", "alpha": 1}
    after = steered(it, fields, x)
    assert_close(after.double() @ axis, torch.zeros(len(x)))
    assert_close(after, off_axis(x, axis))
    assert_close(steered(it, fields, after), after)
    assert_moved(after, x, 1e-3)


@pytest.mark.parametrize("alpha", [1.0, 0.5, -1.0])
def test_ablate_is_the_weighted_sum_of_the_definitions(alpha: float) -> None:
    it, x = probe("ace"), vectors()
    fields = {"avoid": {"warm": 1, "dry": 3}, "method": "ablate", "alpha": alpha}
    expected = x.double()
    for k, weight in ((0, 0.25), (2, 0.75)):
        after = reference.ablate(x.double(), it.at(1)["directions"][k], alpha=alpha)
        expected = expected + weight * (after - x.double())
    assert_close(steered(it, fields, x), expected)


def test_ablate_with_alpha_0_keeps_the_bits() -> None:
    x = vectors()
    fields = {"avoid": ["warm"], "method": "ablate", "alpha": 0}
    assert torch.equal(steered(probe("ace"), fields, x), x)


def test_a_direction_of_length_zero_edits_nothing() -> None:
    base, x = probe("ace"), vectors()
    directions = base.tensors["directions"].clone()
    directions[0] = 0
    it = Probe(base.metadata, {**base.tensors, "directions": directions})
    assert torch.equal(steered(it, {"target": ["warm"], "alpha": 1}, x), x)
