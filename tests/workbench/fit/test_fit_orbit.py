"""Fitting ORBIT-style rotations to synthetic activations."""

from __future__ import annotations

import math

import pytest
import torch

from ksteer_kernels.reference.orbit import orbit
from ksteer_vllm.errors import DataError, UsageError
from ksteer_vllm.fit.methods.orbit import fit, joint_subspace, planes
from ksteer_vllm.fit.statistics import label_means
from ksteer_vllm.probes.probe import Probe
from tests.workbench.fit.recorded import HIDDEN_SIZE, LABELS, recorded_task


@pytest.fixture(scope="module")
def probe() -> Probe:
    return fit(recorded_task("orbit"))


def test_the_planes_are_orthonormal(probe: Probe) -> None:
    plane = probe.tensors["plane"]
    assert plane.shape == (len(LABELS), 2, HIDDEN_SIZE)
    assert (plane @ plane.mT - torch.eye(2)).abs().max().item() < 1e-5
    assert ((probe.tensors["angle"] > 0) & (probe.tensors["angle"] < math.pi)).all()


def test_the_rotation_takes_the_mean_without_a_label_to_the_direction_of_the_one_with_it() -> None:
    task = recorded_task("orbit")
    train, _ = task.train_and_test()
    shown, absent = label_means(train.x, train.targets)
    subspace = joint_subspace(train.x, shown - absent, 4)
    found, angle = planes(subspace, absent, shown, LABELS)
    ungated = torch.zeros(HIDDEN_SIZE, dtype=torch.float64), torch.tensor(80.0, dtype=torch.float64)
    for k in range(len(LABELS)):
        start, goal = (subspace @ mean[k] for mean in (absent, shown))
        turned = orbit((start @ subspace)[None], found[k], angle[k], *ungated)[0]
        wanted = goal / goal.norm() * start.norm()
        torch.testing.assert_close(turned, wanted @ subspace, rtol=0, atol=1e-9)


def test_the_joint_subspace_is_orthonormal_and_holds_every_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, HIDDEN_SIZE, generator=generator)
    difference = torch.randn(1, HIDDEN_SIZE, generator=generator, dtype=torch.float64)
    differences = torch.cat([difference, 1e-3 * torch.roll(difference, 1), 2 * difference])  # one twice
    subspace = joint_subspace(x, differences, 3)
    assert subspace.shape == (2 + 3, HIDDEN_SIZE)
    torch.testing.assert_close(subspace @ subspace.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(differences @ subspace.T @ subspace, differences, rtol=0, atol=1e-12)


def test_gates_open_on_held_out_tokens_without_the_label_and_turn_them_towards_it(probe: Probe) -> None:
    assert probe.metadata.metrics["tokens"]["mean"]["auroc"] > 0.98
    _, test = recorded_task("orbit").train_and_test()
    for k in range(len(LABELS)):
        t = {name: tensor[k] for name, tensor in probe.tensors.items()}
        gate = torch.sigmoid(test.x @ t["gate_weight"] + t["gate_bias"])
        shows = test.targets[:, k] > 0
        assert gate[~shows].mean() > 0.9
        assert gate[shows].mean() < 0.1
        after = orbit(test.x, t["plane"], t["angle"], t["gate_weight"], t["gate_bias"])
        plane = [t["plane"] @ v.mean(0) for v in (test.x[shows], test.x[~shows], after[~shows])]
        assert torch.cosine_similarity(plane[1], plane[0], dim=0) < 0.8
        assert torch.cosine_similarity(plane[2], plane[0], dim=0) > 0.98


def test_the_metrics_say_how_much_of_the_difference_a_rotation_covers(probe: Probe) -> None:
    train, _ = recorded_task("orbit").train_and_test()
    shown, absent = label_means(train.x, train.targets)
    t = probe.at(2)
    open_gate = torch.zeros(HIDDEN_SIZE, dtype=torch.float64), torch.tensor(80.0, dtype=torch.float64)
    for k, label in enumerate(LABELS):
        moved = orbit(absent[k][None], t["plane"][k], t["angle"][k], *open_gate)[0] - absent[k]
        difference = shown[k] - absent[k]
        share = (moved @ difference / (difference @ difference)).item()
        assert probe.metadata.metrics["covered"][label] == pytest.approx(share, abs=1e-6)  # float32 tensors
        assert share > 0.3


def test_the_same_task_gives_the_same_probe(probe: Probe) -> None:
    again = fit(recorded_task("orbit")).tensors
    assert all(torch.equal(probe.tensors[name], again[name]) for name in again)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="at least 10 are needed"):
        fit(recorded_task("orbit", num_rows=12))
    with pytest.raises(UsageError, match=f"directions: {HIDDEN_SIZE + 1} of {HIDDEN_SIZE}"):
        fit(recorded_task("orbit", directions=HIDDEN_SIZE + 1))
    mean = torch.ones(1, HIDDEN_SIZE, dtype=torch.float64)
    with pytest.raises(DataError, match="'warm' point the same way"):
        planes(torch.eye(HIDDEN_SIZE, dtype=torch.float64), mean, 2 * mean, ("warm",))
