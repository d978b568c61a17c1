"""Constant label vectors, and their random control."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_kernels.reference.vectors import add, matched_random
from ksteer_vllm.probes.probe import Probe
from testbed.families import SCALE
from tests.engine.methods.steering import (
    MIXES,
    assert_close,
    assert_moved,
    probe,
    steered,
    vectors,
    weights_of,
)


@pytest.mark.parametrize("alpha", [0.8, -2.0])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_add_is_the_definition(mix: dict[str, Any], alpha: float) -> None:
    it, x = probe("vectors"), vectors()
    expected = add(x.double(), it.at(1)["vectors"], weights_of(mix), alpha=alpha)
    actual = steered(it, {**mix, "alpha": alpha}, x)
    assert_close(actual, expected)
    assert_moved(actual, x)


@pytest.mark.parametrize("method", ["add", "random"])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_every_token_moves_by_the_same_vector_of_the_size_asked(mix: dict[str, Any], method: str) -> None:
    """Raw: |alpha sum c V|, for the random control too. Normalised: alpha times the layer's scale."""
    it, x = probe("vectors"), vectors()
    raw = float((weights_of(mix) @ it.at(1)["vectors"]).norm())
    for fields, size in (({"alpha": 0.5}, 0.5 * raw), ({"alpha": 0.3, "unit": "normalised"}, 0.3 * SCALE[1])):
        edit = steered(it, {**mix, **fields, "method": method}, x) - x
        assert_close(edit, edit[:1].expand_as(edit))
        assert_close(edit.norm(dim=1), torch.full((len(x),), size))


@pytest.mark.parametrize("method", ["add", "random"])
def test_alpha_0_keeps_the_bits(method: str) -> None:
    x = vectors()
    assert torch.equal(steered(probe("vectors"), {"target": ["warm"], "alpha": 0, "method": method}, x), x)


def test_vectors_by_layer() -> None:
    base, x = probe("vectors"), vectors()
    both = torch.stack([base.tensors["vectors"], -2 * base.tensors["vectors"]])
    it = Probe(base.metadata.model_copy(update={"layers": (1, 3)}), {"vectors": both})
    for layer, factor in ((1, 1), (3, -2)):
        edit = steered(it, {"target": ["dry"], "alpha": 1.5}, x, layer) - x
        assert_close(edit, 1.5 * factor * base.tensors["vectors"][2].expand_as(x))


def matrices() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    wide = torch.randn(4, 4096, generator=generator, dtype=torch.float64)
    return {
        "independent": wide * torch.tensor([[1.0], [5.0], [0.01], [1.0]]),
        "one label": wide[:1],
        "two alike": torch.stack([wide[0], wide[1], wide[0]]),
        "opposite and zero": torch.stack([wide[0], -wide[0], 0 * wide[0]]),
        "more labels than dimensions": torch.randn(6, 4, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", matrices())
def test_the_random_control_has_the_true_vectors_norms_and_inner_products(name: str) -> None:
    """Equal Gram matrices, float64: every weighted sum of labels moves x exactly as far."""
    true = matrices()[name]
    control = matched_random(true)
    assert control.shape == true.shape
    torch.testing.assert_close(control @ control.T, true @ true.T, rtol=1e-10, atol=1e-10)
    assert torch.equal(control, matched_random(true)), "the same control every time"


@pytest.mark.parametrize("name", ["independent", "one label", "two alike"])
def test_the_random_control_is_nearly_orthogonal_to_the_true_vectors(name: str) -> None:
    """Cosines of random directions in d dimensions have deviation 1 / sqrt(d); five of them are allowed."""
    true = matrices()[name]
    control = matched_random(true)
    cosines = torch.nn.functional.normalize(control) @ torch.nn.functional.normalize(true).T
    assert float(cosines.abs().max()) < 5 / true.shape[1] ** 0.5


def test_the_control_of_a_random_probe_is_another_one() -> None:
    """`ksteer fit --method random` turns vectors in the same way, by the seed of its task."""
    true = matrices()["one label"]
    for seed in range(3):
        fitted = matched_random(true, seed)
        assert float(torch.cosine_similarity(fitted, matched_random(fitted)).abs().max()) < 5 / 64
