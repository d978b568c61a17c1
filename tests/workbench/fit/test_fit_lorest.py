"""Fitting LoReST through a tiny language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ksteer_kernels.reference.lorest import lorest
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.methods.lorest import LoReST, LoReSTPlan, fit
from ksteer_vllm.probes.probe import Probe
from testbed.models import HIDDEN_SIZE
from tests.workbench.fit.edits import LABELS, task_of

QUICK = {"steps": 4, "hard_steps": 4, "batch_size": 8}


@pytest.fixture(scope="module")
def probe(llama: Path, rows: list[LabelledRow]) -> Probe:
    return fit(task_of(llama, rows, "lorest", rank=6, steps=16, hard_steps=8, batch_size=8))


def test_the_basis_is_orthonormal_and_the_mask_hard(probe: Probe) -> None:
    basis, removed = probe.tensors["basis"], probe.tensors["removed"]
    assert basis.shape == (len(LABELS), 6, HIDDEN_SIZE)
    assert (basis @ basis.mT - torch.eye(6)).abs().max().item() < 1e-5  # float32: about 1e-7
    assert ((removed == 0) | (removed == 1)).all()
    assert removed.any()
    assert not removed.all()


def test_the_loss_of_held_out_replies_falls(probe: Probe) -> None:
    for label in LABELS:
        found = probe.metadata.metrics["language_model"]["labels"][label]
        assert found["loss"] < found["loss_unsteered"] - 0.1  # of about 5


def test_the_seed_decides_everything(llama: Path, rows: list[LabelledRow]) -> None:
    torch.manual_seed(1)
    first = fit(task_of(llama, rows, "lorest", **QUICK)).tensors
    torch.manual_seed(2)
    again = fit(task_of(llama, rows, "lorest", **QUICK)).tensors
    other = fit(task_of(llama, rows, "lorest", seed=1, **QUICK)).tensors
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["bias"], other["bias"])


def test_what_is_validated_is_what_is_saved() -> None:
    """In evaluation mode, and once p is fixed, the edit is the definition with p of 0 and 1."""
    edit = LoReST(HIDDEN_SIZE, LoReSTPlan(), 3.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        edit.logit.copy_(torch.tensor([0.3, -0.2, 1.0, -2.0]))
        edit.offset.fill_(0.5)
    x = torch.randn(7, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    wanted = lorest(x, edit.basis.weight, mask, edit.bias)
    torch.testing.assert_close(edit.eval()(x), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(edit.train()(x), wanted, atol=1e-3)  # relaxed: p strictly between
    assert edit.next_phase() == LoReSTPlan().hard_steps
    torch.testing.assert_close(edit.train()(x), wanted, rtol=0, atol=1e-5)
    assert edit.next_phase() == 0


def test_the_relaxation_hardens_as_the_temperature_falls() -> None:
    edit = LoReST(HIDDEN_SIZE, LoReSTPlan(rank=32), 3.0, torch.Generator().manual_seed(0))
    softness = []
    for done in (0.0, 1.0):
        edit.begin_epoch(done)
        p = torch.stack([edit._relaxed() for _ in range(50)])
        assert ((p >= 0) & (p <= 1)).all()
        softness.append((p * (1 - p)).mean().item())
    # at temperature 1 and logit 0 p is uniform: E p (1 - p) = 1/6; at 0.1 most draws are near an end
    assert softness[0] == pytest.approx(1 / 6, abs=0.01)
    assert softness[1] < 0.05


def test_too_little_data_is_refused(llama: Path, rows: list[LabelledRow]) -> None:
    with pytest.raises(DataError, match="at least 10 are needed"):
        fit(task_of(llama, rows[:15], "lorest"))
