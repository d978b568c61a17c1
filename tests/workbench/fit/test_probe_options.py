"""The probe's further options: losses, several seeds, presets, reading a block's input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ksteer_vllm import UsageError
from ksteer_vllm.data.positions import PROMPT_LAST, REPLY
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import FitPlan, FitTask, fit_probe, train
from ksteer_vllm.fit.methods.mlp import fit
from ksteer_vllm.fit.presets import PRESETS, preset_of
from ksteer_vllm.probes.probe import Probe
from tests.workbench.fit.recorded import recorded_task
from tests.workbench.fit.test_train import LABELS, MODEL, synthetic


def fit_synthetic(targets: Any = None, **options: Any) -> Probe:
    x, found, row = synthetic()
    plan = FitPlan(**{"width": 16, "epochs": 20, "learning_rate": 5e-3, **options})
    names = [str(index) for index in range(len(found))]
    wanted = found if targets is None else targets
    return fit_probe(x, wanted, row, names, labels=LABELS, layer=2, model=MODEL, plan=plan)


def test_cross_entropy_reads_one_label_a_row() -> None:
    x, targets, row = synthetic()
    one = torch.stack([targets[:, 0], 1 - targets[:, 0]], 1)
    probe = fit_synthetic(one, loss="cross-entropy")
    assert probe.metadata.metrics["top_label"] > 0.95
    assert probe.metadata.metrics["tokens"]["mean"].keys() == {"auroc", "average_precision"}
    logits = probe.logits(x)
    assert (logits.argmax(1) == one[row].argmax(1)).float().mean() > 0.95
    both = int((targets.sum(1) == 2).nonzero()[0, 0])
    one[both] = 1
    with pytest.raises(DataError, match=f"row {both + 1}: shows 2 labels.*take --loss bce"):
        fit_synthetic(one, loss="cross-entropy")


def test_of_several_seeds_the_best_on_validation_is_kept_and_all_are_reported() -> None:
    alone = [fit_synthetic(seed=0, epochs=2), fit_synthetic(epochs=2, seeds=3)]
    report = alone[1].metadata.training["by_seed"]
    assert report["seeds"] == [0, 1, 2]
    assert report["validation_loss"][0] == alone[0].metadata.training["validation_loss"]
    assert alone[1].metadata.training["validation_loss"] == min(report["validation_loss"])
    assert report["auroc_mean"] == pytest.approx(sum(report["auroc"]) / 3)
    assert report["auroc_deviation"] > 0
    assert "by_seed" not in alone[0].metadata.training


def test_without_early_stopping_the_last_epoch_is_kept() -> None:
    found = fit_synthetic(early_stopping=False, patience=1, epochs=30, learning_rate=0.05)
    assert found.metadata.training["epochs_run"] == found.metadata.training["best_epoch"] == 30


@pytest.mark.parametrize("standardise", [True, False])
def test_noise_is_counted_in_deviations_of_the_input(
    standardise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three deviations of noise: those of what is trained on are sqrt(1 + 9) times the input's."""
    x, targets, row = synthetic()
    x = x * torch.logspace(-2, 2, x.shape[1])
    make, seen = train._network, []

    def watched(*arguments: Any) -> Any:
        network = make(*arguments)
        network[0].register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0]) if torch.is_grad_enabled() else None
        )
        return network

    monkeypatch.setattr(train, "_network", watched)
    plan = FitPlan(width=8, epochs=30, noise=3.0, standardise=standardise, early_stopping=False)
    names = [str(index) for index in range(len(targets))]
    fit_probe(x, targets, row, names, labels=LABELS, layer=2, model=MODEL, plan=plan)
    expected = torch.ones(x.shape[1]) if standardise else x.std(0)
    torch.testing.assert_close(torch.cat(seen).std(0), expected * 10**0.5, rtol=0.15, atol=0.0)


def test_a_preset_is_what_was_published() -> None:
    probe = fit_synthetic(**{**PRESETS["pip-0.1.2"].options})
    assert probe.tensors["w1"].shape[0] == 128
    assert torch.equal(probe.tensors["input_mean"], torch.zeros(12))
    assert torch.equal(probe.tensors["input_std"], torch.ones(12))
    training = probe.metadata.training
    assert (training["loss"], training["batch_size"], training["epochs_run"]) == ("bce", 64, 1)
    assert (training["weight_decay"], training["learning_rate"]) == (0, 1e-3)
    paper = preset_of("paper")
    assert paper.window == PROMPT_LAST
    assert paper.options["loss"] == "cross-entropy"
    assert paper.options["width"] == 256
    assert preset_of(None).options == {}
    with pytest.raises(UsageError, match=r"preset: unknown 'best'; known: paper, pip-0.1.2"):
        preset_of("best")


def test_compat_reads_the_blocks_input_and_says_so() -> None:
    """Block 2's input is block 1's output; the probe steers at 2."""
    task = recorded_task("mlp", epochs=2, width=8)
    found = task.recorded[REPLY]
    moved = {1: found.streams[2], 2: torch.zeros(len(found.row), 16)}
    compat = replace(task, compat="pip-0.1.2", recorded={REPLY: replace(found, streams=moved)})
    probe, plain = fit(compat), fit(task)
    assert torch.equal(probe.tensors["w1"], plain.tensors["w1"])
    assert probe.metadata.layer == 2
    assert probe.metadata.settings == {"compat": "pip-0.1.2"}
    assert probe.metadata.training["compat"] == "pip-0.1.2"
    assert plain.metadata.settings == {}
    with pytest.raises(UsageError, match="layer: the input of block 0"):
        fit(replace(compat, layer=0))


def test_shared_options_are_taken_by_those_who_know_them() -> None:
    task = recorded_task("caa", width=8, seed=3)
    with pytest.raises(UsageError, match="takes no width"):
        fitted(task)
    assert fitted(replace(task, shared_options=True)).metadata.training["seed"] == 3


def fitted(task: FitTask) -> Probe:
    from ksteer_vllm.spec.families import fits, load

    probe: Probe = load(fits()[task.method])(task)
    return probe
