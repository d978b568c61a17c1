"""Fitting LoReFT through a tiny language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ksteer_kernels.reference.loreft import loreft
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import DataError, UsageError
from ksteer_vllm.fit.language_model import FrozenModel
from ksteer_vllm.fit.methods.loreft import LoReFT, fit
from ksteer_vllm.probes.probe import Probe
from testbed.models import HIDDEN_SIZE, NUM_LAYERS
from tests.workbench.fit.edits import LABELS, task_of

QUICK = {"steps": 4, "batch_size": 8}


@pytest.fixture(scope="module")
def probe(llama: Path, rows: list[LabelledRow]) -> Probe:
    return fit(task_of(llama, rows, "loreft", steps=24, batch_size=8))


def test_the_rows_of_the_rotation_are_orthonormal(probe: Probe) -> None:
    rotation = probe.tensors["rotation"]
    assert rotation.shape == (len(LABELS), 4, HIDDEN_SIZE)
    error = (rotation @ rotation.mT - torch.eye(4)).abs().max().item()
    assert error < 1e-5  # float32 Householder products: about 1e-7


def test_the_loss_of_held_out_replies_falls(probe: Probe) -> None:
    for label in LABELS:
        found = probe.metadata.metrics["language_model"]["labels"][label]
        assert found["replies"] > 0
        assert found["loss"] < found["loss_unsteered"] - 0.1  # of about 5


def test_the_probe_has_the_loss_its_metrics_say(probe: Probe, llama: Path, rows: list[LabelledRow]) -> None:
    task = task_of(llama, rows, "loreft")
    model = FrozenModel(str(llama), 2, NUM_LAYERS)
    tensors = probe.tensors

    class Saved(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return loreft(x, tensors["rotation"][1], tensors["weight"][1], tensors["bias"][1])

    shown = [
        model.encode(rows[index], system=False)
        for index in task.parts["test"]
        if LABELS[1] in rows[index].labels
    ]
    wanted = probe.metadata.metrics["language_model"]["labels"][LABELS[1]]["loss"]
    assert model.mean_loss(shown, Saved()) == pytest.approx(wanted, abs=1e-4)  # float32, another batch order


def test_training_starts_from_no_edit() -> None:
    edit = LoReFT(HIDDEN_SIZE, 4, 3.0, torch.Generator().manual_seed(0))
    x = torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(edit(x), x, rtol=0, atol=1e-5)


def test_the_seed_decides_everything(llama: Path, rows: list[LabelledRow]) -> None:
    torch.manual_seed(1)
    first = fit(task_of(llama, rows, "loreft", **QUICK)).tensors
    torch.manual_seed(2)
    again = fit(task_of(llama, rows, "loreft", **QUICK)).tensors
    other = fit(task_of(llama, rows, "loreft", seed=1, **QUICK)).tensors
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["rotation"], other["rotation"])


def test_the_rank_is_an_option(llama: Path, rows: list[LabelledRow]) -> None:
    tensors = fit(task_of(llama, rows, "loreft", rank=1, **QUICK)).tensors
    assert tensors["weight"].shape == (len(LABELS), 1, HIDDEN_SIZE)
    with pytest.raises(UsageError, match=f"rank: {HIDDEN_SIZE + 1} of a residual stream of size"):
        fit(task_of(llama, rows, "loreft", rank=HIDDEN_SIZE + 1))
    with pytest.raises(UsageError, match="takes no width"):
        fit(task_of(llama, rows, "loreft", width=3))


def test_early_stopping_keeps_the_best_epoch(llama: Path, rows: list[LabelledRow]) -> None:
    fast = {
        "learning_rate": 0.1,
        "steps": 400,
        "epochs": 40,
        "batch_size": 8,
    }  # soon learns the rows by heart
    labels = fit(task_of(llama, rows, "loreft", **fast)).metadata.training["labels"]
    for found in labels.values():
        losses, best = found["validation_losses"], found["best_epoch"]
        assert found["epochs_run"] == len(losses) == best + 2 < 40
        assert found["validation_loss"] == losses[best - 1] == min(losses)


def test_too_little_data_is_refused(llama: Path, rows: list[LabelledRow]) -> None:
    with pytest.raises(DataError, match="at least 10 are needed"):
        fit(task_of(llama, rows[:15], "loreft"))
    long = [*rows[:-1], rows[-1].model_copy(update={"reply": "w20 " * 600})]
    with pytest.raises(DataError, match="row 90: prompt and reply have"):
        fit(task_of(llama, long, "loreft"))
