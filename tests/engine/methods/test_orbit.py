"""ORBIT-style rotations: the program against the definition, and what a rotation must do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ksteer_kernels.reference.orbit import orbit
from ksteer_vllm.probes.probe import Probe
from tests.engine.methods.fitted import HIDDEN_SIZE, LABELS, probe_of
from tests.engine.methods.steering import steered

TOLERANCE = 2e-5  # float32 sums of 32 products of size about 1; a wrong sign or plane moves x by about 1


@pytest.fixture
def x() -> Tensor:
    return torch.randn(9, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


def random_rotations(gate_bias: float | None = None) -> Probe:
    generator = torch.Generator().manual_seed(0)
    k = len(LABELS)
    bias = torch.randn(k, generator=generator) if gate_bias is None else torch.full((k,), gate_bias)
    planes = torch.randn(k, HIDDEN_SIZE, 2, generator=generator)
    return probe_of(
        "orbit",
        {
            "plane": torch.linalg.qr(planes).Q.mT.contiguous(),
            "angle": torch.tensor([0.7, 1.9, 2.8]),
            "gate_weight": torch.randn(k, HIDDEN_SIZE, generator=generator) * HIDDEN_SIZE**-0.5,
            "gate_bias": bias,
        },
    )


def definition(probe: Probe, k: int, x: Tensor, alpha: float) -> Tensor:
    t = probe.at(1)
    parts = (t[name][k] for name in ("plane", "angle", "gate_weight", "gate_bias"))
    return orbit(x.double(), *parts, alpha=alpha)


@pytest.mark.parametrize("alpha", [1.0, 0.4, -0.5, 3.0])
@pytest.mark.parametrize("target", [{"dry": 1.0}, {"warm": 0.25, "wry": 0.75}])
def test_the_program_is_the_weighted_sum_of_the_definitions(
    x: Tensor, alpha: float, target: dict[str, float]
) -> None:
    probe = random_rotations()
    wanted = x.double()
    for label, weight in target.items():
        wanted = wanted + weight * (definition(probe, LABELS.index(label), x, alpha) - x.double())
    found = steered(probe, {"method": "orbit", "target": target, "alpha": alpha}, x)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=TOLERANCE)


def test_alpha_0_keeps_the_bits(x: Tensor) -> None:
    assert torch.equal(
        steered(random_rotations(), {"method": "orbit", "target": {"dry": 1.0}, "alpha": 0.0}, x), x
    )


def test_an_open_gate_turns_u_to_the_angle_and_keeps_the_norm(x: Tensor) -> None:
    probe = random_rotations(gate_bias=60.0)  # sigmoid(60 - a few) is 1 in float64
    (u, w), angle = probe.at(1)["plane"][1], probe.at(1)["angle"][1]
    turned = definition(probe, 1, 5 * u[None], 1.0)[0]
    torch.testing.assert_close(turned, 5 * (torch.cos(angle) * u + torch.sin(angle) * w), rtol=0, atol=1e-6)
    after = definition(probe, 1, x, 0.8)
    torch.testing.assert_close(after.norm(dim=1), x.double().norm(dim=1), rtol=1e-6, atol=0)
    whole = definition(probe, 1, x, 2 * math.pi / float(angle))
    torch.testing.assert_close(whole, x.double(), rtol=0, atol=1e-6)  # a whole turn is none


def test_a_shut_gate_leaves_tokens_alone(x: Tensor) -> None:
    found = steered(
        random_rotations(gate_bias=-60.0), {"method": "orbit", "target": {"dry": 1.0}, "alpha": 1.0}, x
    )
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)
