"""What a fit refuses, warns of and records: invisible labels, a poor judge, the regularisation it chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ksteer_vllm.bench.chance import INTERVAL, BalancedAccuracy, at_chance
from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import DataError
from ksteer_vllm.experiments.layers import sweep
from ksteer_vllm.experiments.layers.plan import LayerPlan
from ksteer_vllm.experiments.suite import common
from ksteer_vllm.experiments.suite.fit import fit_suite
from ksteer_vllm.experiments.suite.plan import SuitePlan
from ksteer_vllm.experiments.suite.reading import judge_line, linear_reads_better
from ksteer_vllm.experiments.suite.single import fit_single
from ksteer_vllm.fit import FitPlan
from ksteer_vllm.fit.heldout import evaluate
from ksteer_vllm.fit.linear_control import CONTROL, control_line, with_linear_control
from ksteer_vllm.fit.methods import linear, mlp
from ksteer_vllm.fit.task import FitTask
from tests.workbench.fit.synthetic import LABELS, synthetic_rows, synthetic_task
from tests.workbench.fit.test_visibility import rows

PLAN = SuitePlan(methods=("caa",), layer=1)


class _Fitted(Exception):
    """The gate was passed."""


@pytest.fixture
def replying(monkeypatch: pytest.MonkeyPatch) -> list[LabelledRow]:
    """What the model "writes" for rows without replies; a fit after the gate stops at once."""
    spoken: list[LabelledRow] = []

    def completed(_: str, asked: Sequence[LabelledRow], *__: Any, **___: Any) -> list[LabelledRow]:
        replies = {(row.prompt, row.labels): row for row in spoken}
        return [replies.get((row.prompt, row.labels), row) for row in asked]

    def fit(*_: Any, **__: Any) -> None:
        raise _Fitted

    monkeypatch.setattr(common, "complete_rows", completed)
    monkeypatch.setattr(sweep, "complete_rows", completed)
    monkeypatch.setattr("ksteer_vllm.experiments.suite.single.fit_at", fit)
    monkeypatch.setattr("ksteer_vllm.experiments.suite.fit._SuiteFit._fit_all", fit)
    monkeypatch.setattr(sweep, "_fit_all", fit)
    return spoken


@pytest.mark.parametrize(
    ("fit", "plan"),
    [(fit_single, PLAN), (fit_suite, PLAN), (sweep.sweep_layers, LayerPlan(layers=(1,)))],
)
def test_replies_that_ignore_their_instruction_stop_the_fit(
    fit: Any,
    plan: SuitePlan | LayerPlan,
    llama: Path,
    replying: list[LabelledRow],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replying += rows(true=False, questions=60)
    asked = TaskDataset.of("tones", [row.model_copy(update={"reply": None}) for row in replying])
    with pytest.raises(DataError, match=r"do not show their labels: .*formal 0.*--allow-invisible-labels"):
        fit(str(llama), asked, tmp_path, plan)
    anyway = plan.model_copy(update={"allow_invisible_labels": True})
    with pytest.raises(_Fitted):
        fit(str(llama), asked, tmp_path, anyway)
    assert "warning: the replies do not show their labels" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("true", [True, False])
def test_true_labels_pass_and_a_persons_labels_are_warned_of(
    true: bool,
    llama: Path,
    replying: list[LabelledRow],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = rows(true=true, questions=60)
    with pytest.raises(_Fitted):
        fit_single(str(llama), TaskDataset.of("written", written), tmp_path, PLAN)
    told = " ".join(capsys.readouterr().err.split())
    assert ("warning: the replies do not show" in told) is not true
    replying += written
    asked = TaskDataset.of("asked", [row.model_copy(update={"reply": None}) for row in written])
    with pytest.raises(_Fitted if true else DataError):
        fit_single(str(llama), asked, tmp_path, PLAN)


def test_balanced_accuracy_has_an_interval_that_holds_for_few_replies() -> None:
    shown = np.array([True, False] * 4)
    perfect = BalancedAccuracy.of(shown, shown)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.6 < perfect.low < 0.8, "four of four are not much"
    assert perfect.above_chance
    many = BalancedAccuracy.of(np.tile(shown, 50), np.tile(shown, 50))
    assert many.low > 0.98
    found = BalancedAccuracy.of(shown, np.ones(8, dtype=bool))
    assert found.value == 0.5
    assert not found.above_chance


def test_held_out_metrics_say_where_a_probe_is_at_chance() -> None:
    """One label is read perfectly, the other not at all."""
    targets = torch.tensor([[k % 2, k // 2 % 2] for k in range(40)]).float()
    logits = torch.stack([4 * targets[:, 0] - 2, torch.ones(40)], dim=1)
    metrics = evaluate(logits, targets, torch.arange(40), LABELS)
    assert metrics["replies"]["labels"]["warm"][INTERVAL][0] > 0.8
    assert set(at_chance(metrics, LABELS)) == {"dry"}
    assert at_chance(metrics, ["warm"]) == {}
    del metrics["replies"]["labels"]["dry"][INTERVAL]
    assert at_chance(metrics, LABELS) == {}, "of an older probe nothing is known"


def fitted(task: FitTask) -> Any:
    return mlp.fit(task)


def test_the_regularisation_with_the_best_validation_loss_is_kept() -> None:
    probe = fitted(synthetic_task("mlp", width=16, epochs=6))
    grid = probe.metadata.training["grid"]
    assert [{name: one[name] for name in mlp.GRID[0]} for one in grid] == list(mlp.GRID)
    best = min(grid, key=lambda one: one["validation_loss"])
    for name in ("noise", "weight_decay", "validation_loss", "epochs_run"):
        assert probe.metadata.training[name] == best[name]
    alone = fitted(synthetic_task("mlp", width=16, epochs=6, noise=best["noise"]))
    assert "grid" not in alone.metadata.training
    assert alone.metadata.training["weight_decay"] == FitPlan().weight_decay


def test_much_data_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task("mlp", width=16, epochs=1)
    monkeypatch.setattr(mlp, "GRID_NUMBERS", 12 * 120 * 6 - 1)
    assert "grid" not in fitted(task).metadata.training


def test_a_linear_probe_that_reads_better_is_told_of() -> None:
    probes = {
        "mlp": fitted(synthetic_task("mlp", width=1, epochs=1, noise=5.0)),
        "linear": linear.fit(synthetic_task("linear")),
    }
    line = linear_reads_better(probes)
    assert line is not None
    for probe in probes.values():
        assert f"AUROC {probe.metadata.metrics['replies']['mean']['auroc']:.3f}" in line
    assert linear_reads_better({"mlp": probes["linear"], "linear": probes["mlp"]}) is None
    assert linear_reads_better({"mlp": probes["mlp"]}) is None
    assert "A linear probe reads held-out replies better" in line


def test_an_mlp_alone_is_compared_with_a_linear_control() -> None:
    task = synthetic_task("mlp", width=1, epochs=1, noise=5.0)
    probe = with_linear_control(task, fitted(task))
    control = probe.metadata.training[CONTROL]
    whole = linear.fit(synthetic_task("linear")).metadata.metrics["replies"]["mean"]
    assert control["auroc"] == pytest.approx(whole["auroc"], abs=0.02), "fitted to the end or not"
    line = control_line(probe)
    assert line is not None
    assert f"AUROC {control['auroc']:.3f}" in line
    untold = probe.with_metadata(training={**probe.metadata.training, CONTROL: dict.fromkeys(control, 0.0)})
    assert control_line(untold) is None


def test_what_has_no_control_stays_as_it_is() -> None:
    task = synthetic_task("linear")
    other = linear.fit(task)
    assert with_linear_control(task, other) is other
    assert control_line(other) is None
    rankings = synthetic_task("mlp", rows=one_label_each(), width=4, epochs=1, loss="cross-entropy")
    ranked = fitted(rankings)
    assert with_linear_control(rankings, ranked) is ranked
    task = synthetic_task("mlp", width=4, epochs=1, noise=0.0)
    probe = fitted(task)
    assert with_linear_control(replace(task, recorded={}), probe) is probe, "no engine starts for it"


def one_label_each() -> list[LabelledRow]:
    return [row.model_copy(update={"labels": LABELS[k % 2 :][:1]}) for k, row in enumerate(synthetic_rows())]


def test_a_judge_at_chance_is_told_of() -> None:
    probes = {
        "mlp": fitted(synthetic_task("mlp", width=1, epochs=1, noise=5.0)),
        "linear": linear.fit(synthetic_task("linear")),
    }
    line = judge_line(probes["mlp"], LABELS)
    assert line is not None
    assert "no judge of warm 0." in line
    assert judge_line(probes["linear"], LABELS) is None
