"""Fitting MAT-Steer to synthetic activations."""

from __future__ import annotations

import pytest
import torch

from ksteer_kernels.reference.mat import mat_steer
from ksteer_vllm.errors import DataError, UsageError
from ksteer_vllm.fit.methods.mat_steer import GatedVectors, MATPlan, _Objective, fit, squared_mmd
from ksteer_vllm.probes.probe import Probe
from tests.workbench.fit.recorded import HIDDEN_SIZE, LABELS, recorded_task

QUICK = {"steps": 30, "batch_size": 32}


@pytest.fixture(scope="module")
def probe() -> Probe:
    return fit(recorded_task("mat_steer", batch_size=64))


def test_the_discrepancy_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=generator), 1 + torch.randn(2, 4, 3, generator=generator)
    width = torch.tensor([1.0, 2.0])

    def mean_kernel(x: torch.Tensor, y: torch.Tensor, size: float) -> float:
        return sum(
            torch.exp(-(p - q).square().sum() / (2 * (factor * size) ** 2)).item()
            for factor in (0.5, 1.0, 2.0) for p in x for q in y
        ) / (3 * len(x) * len(y))  # fmt: skip

    wanted = [
        mean_kernel(a[k], a[k], s) + mean_kernel(b[k], b[k], s) - 2 * mean_kernel(a[k], b[k], s)
        for k, s in enumerate(width.tolist())
    ]
    torch.testing.assert_close(squared_mmd(a, b, width), torch.tensor(wanted), rtol=0, atol=1e-5)
    assert squared_mmd(a, a, width).abs().max() < 1e-6


def test_the_loss_is_that_of_the_edited_tokens_themselves() -> None:
    """Loss and gradients from distances of unedited tokens, against those of x + g v; both float32: 1e-5."""
    generator = torch.Generator().manual_seed(0)
    absent, shown = (torch.randn(2, 9, 6, generator=generator) + shift for shift in (0.0, 0.5))
    mean, std, scale, plan = torch.full((6,), 0.2), torch.linspace(0.5, 2, 6), 1.7, MATPlan()
    model = GatedVectors(torch.randn(2, 6, generator=generator))
    torch.nn.init.normal_(model.gate_weight, generator=generator)
    objective = _Objective(mean, std, scale, plan)
    sides = objective.sides(absent, shown)
    loss = objective(model, sides)
    found = torch.autograd.grad(loss, list(model.parameters()))

    def gates(x: torch.Tensor) -> torch.Tensor:
        z = (x - mean) / std
        return torch.sigmoid((z * model.gate_weight[:, None]).sum(-1) + model.gate_bias[:, None])

    start, goal = (absent - mean) / scale, (shown - mean) / scale
    width = torch.cdist(start, goal).flatten(1).median(1).values
    edited = start + gates(absent)[:, :, None] * model.vectors[:, None]
    penalty = plan.positive * gates(shown).square().mean(1) + plan.sparse * gates(absent).mean(1)
    cosine = torch.cosine_similarity(model.vectors[0], model.vectors[1], dim=0)
    direct = (squared_mmd(edited, goal, width) + penalty).sum() + plan.orthogonal * cosine.square()
    torch.testing.assert_close(loss, direct, rtol=0, atol=1e-5)
    torch.testing.assert_close(sides.discrepancy(), squared_mmd(start, goal, width), rtol=0, atol=1e-5)
    wanted = torch.autograd.grad(direct, list(model.parameters()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_discrepancy_of_held_out_tokens_falls(probe: Probe) -> None:
    for label in LABELS:
        found = probe.metadata.metrics["squared_mmd"]["labels"][label]
        assert found["steered"] < 0.15 * found["unsteered"]


def test_the_edit_moves_tokens_without_the_label_and_leaves_the_others(probe: Probe) -> None:
    _, test = recorded_task("mat_steer").train_and_test()
    for k in range(len(LABELS)):
        t = {name: tensor[k] for name, tensor in probe.tensors.items()}
        moved = mat_steer(test.x, t["vectors"], t["gate_weight"], t["gate_bias"]) - test.x
        shows = test.targets[:, k] > 0
        goal = test.x[shows].mean(0) - test.x[~shows].mean(0)
        assert (moved[~shows].mean(0) - goal).norm() < 0.3 * goal.norm()
        assert moved[shows].norm(dim=1).mean() < 0.25 * moved[~shows].norm(dim=1).mean()


def test_the_penalties_do_what_they_say() -> None:
    def overlap(weight: float) -> float:
        task = recorded_task("mat_steer", overlap=0.7, orthogonal=weight, **QUICK)
        vectors = fit(task).tensors["vectors"]
        return torch.cosine_similarity(vectors[0], vectors[1], dim=0).abs().item()

    assert overlap(10.0) < 0.1 < overlap(0.0)

    def openness(**weights: float) -> tuple[float, float]:
        """Mean gate on held-out tokens without and with the first label."""
        task = recorded_task("mat_steer", **weights, **QUICK)
        tensors, (_, test) = fit(task).tensors, task.train_and_test()
        gate = torch.sigmoid(test.x @ tensors["gate_weight"][0] + tensors["gate_bias"][0])
        shows = test.targets[:, 0] > 0
        return gate[~shows].mean().item(), gate[shows].mean().item()

    plain = openness(positive=0.0, sparse=0.0)
    assert openness(positive=0.0, sparse=1.0)[0] < 0.7 * plain[0]
    assert openness(positive=1.0, sparse=0.0)[1] < 0.7 * plain[1]


def test_the_seed_decides_everything() -> None:
    torch.manual_seed(1)
    first = fit(recorded_task("mat_steer", **QUICK)).tensors
    torch.manual_seed(2)
    again = fit(recorded_task("mat_steer", **QUICK)).tensors
    other = fit(recorded_task("mat_steer", seed=1, **QUICK)).tensors
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["vectors"], other["vectors"])
    assert first["gate_weight"].shape == (len(LABELS), HIDDEN_SIZE)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="at least 10 are needed"):
        fit(recorded_task("mat_steer", num_rows=12))
    with pytest.raises(UsageError, match="takes no rank"):
        fit(recorded_task("mat_steer", rank=2))
