"""MAT-Steer: the program against the definition, and what a gate must do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ksteer_kernels.reference.mat import mat_steer
from ksteer_vllm.probes.probe import Probe
from tests.engine.methods.fitted import HIDDEN_SIZE, LABELS, probe_of
from tests.engine.methods.steering import steered

TOLERANCE = 2e-5  # float32 sums of 32 products of size about 1; a wrong sign or gate moves x by about 1


@pytest.fixture
def x() -> Tensor:
    return torch.randn(9, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


def random_vectors(gate_bias: float | None = None) -> Probe:
    generator = torch.Generator().manual_seed(0)
    k = len(LABELS)
    bias = torch.randn(k, generator=generator) if gate_bias is None else torch.full((k,), gate_bias)
    return probe_of(
        "mat",
        {
            "vectors": torch.randn(k, HIDDEN_SIZE, generator=generator),
            "gate_weight": torch.randn(k, HIDDEN_SIZE, generator=generator) * HIDDEN_SIZE**-0.5,
            "gate_bias": bias,
        },
    )


@pytest.mark.parametrize("alpha", [1.0, -0.5, 3.0])
@pytest.mark.parametrize("target", [{"dry": 1.0}, {"warm": 0.25, "wry": 0.75}])
def test_the_program_is_the_weighted_sum_of_the_definitions(
    x: Tensor, alpha: float, target: dict[str, float]
) -> None:
    probe = random_vectors()
    t, wanted = probe.at(1), x.double()
    for label, weight in target.items():
        parts = (t[name][LABELS.index(label)] for name in ("vectors", "gate_weight", "gate_bias"))
        wanted = wanted + weight * (mat_steer(x.double(), *parts, alpha=alpha) - x.double())
    found = steered(probe, {"method": "mat_steer", "target": target, "alpha": alpha}, x)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=TOLERANCE)


def test_alpha_0_keeps_the_bits(x: Tensor) -> None:
    edit = {"method": "mat_steer", "target": {"dry": 1.0}, "alpha": 0.0}
    assert torch.equal(steered(random_vectors(), edit, x), x)


@pytest.mark.parametrize(("gate_bias", "share"), [(60.0, 1.0), (-60.0, 0.0)])
def test_an_open_gate_adds_the_vector_and_a_shut_one_nothing(
    x: Tensor, gate_bias: float, share: float
) -> None:
    probe = random_vectors(gate_bias)
    found = steered(probe, {"method": "mat_steer", "target": {"dry": 1.0}, "alpha": 1.0}, x)
    torch.testing.assert_close(found, x + share * probe.tensors["vectors"][1], rtol=0, atol=1e-6)
