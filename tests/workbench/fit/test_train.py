"""Fitting on synthetic activations: what is learned, what is recorded, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import ModelIdentity, Probe
from ksteer_vllm.data.split import MIN_ROWS, conversations_of, split_conversations
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import FitPlan, fit_probe
from ksteer_vllm.fit.statistics import label_vectors

D, ROWS, TOKENS = 12, 120, 6
LABELS = ("warm", "dry")
MODEL = ModelIdentity(name="synthetic", model_type="llama", hidden_size=D, num_layers=4)
PLAN = FitPlan(width=16, epochs=40, batch_size=64, learning_rate=5e-3)


def synthetic(spread: float = 0.4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, D] in which each label is a direction, targets [rows, K], row [N]."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(ROWS, len(LABELS), generator=generator) < 0.5).float()
    directions = torch.randn(len(LABELS), D, generator=generator)
    row = torch.arange(ROWS).repeat_interleave(TOKENS)
    x = 5 + targets[row] @ directions + spread * torch.randn(len(row), D, generator=generator)
    return x, targets, row


def fit(x: Tensor, targets: Tensor, row: Tensor, plan: FitPlan = PLAN, **extra: Any) -> Probe:
    names = [str(index) for index in range(len(targets))]
    return fit_probe(x, targets, row, names, labels=LABELS, layer=2, model=MODEL, plan=plan, **extra)


def test_separable_labels_are_read_on_held_out_rows() -> None:
    probe = fit(*synthetic(), provenance={"data_digest": "abc"})
    metrics = probe.metadata.metrics
    assert metrics["tokens"]["mean"]["auroc"] > 0.98
    assert metrics["replies"]["mean"]["accuracy"] > 0.95
    assert metrics["tokens"]["count"] == metrics["replies"]["count"] * TOKENS == 24 * TOKENS
    assert set(metrics["tokens"]["labels"]) == set(LABELS)
    training = probe.metadata.training
    assert training["data_digest"] == "abc"
    assert training["split"]["test"] == {"rows": 24, "tokens": 24 * TOKENS}
    assert sum(part["rows"] for part in training["split"].values()) == ROWS
    assert training["width"] == 16
    assert training["seed"] == 0


def test_the_seed_decides_everything(tmp_path: Any) -> None:
    data = synthetic()
    noisy = PLAN.model_copy(update={"noise": 0.3, "epochs": 3})
    torch.manual_seed(1)
    first = fit(*data, plan=noisy).save(tmp_path / "a")
    torch.manual_seed(2)
    again = fit(*data, plan=noisy).save(tmp_path / "b")
    other = fit(*data, plan=noisy.model_copy(update={"seed": 1})).save(tmp_path / "c")
    digests = [Probe.load_metadata(folder).digest for folder in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_early_stopping_keeps_the_best_epoch() -> None:
    x, targets, row = synthetic(spread=6.0)  # hardly readable: a wide probe soon fits the noise
    probe = fit(x, targets, row, plan=PLAN.model_copy(update={"width": 128, "patience": 3, "epochs": 200}))
    training = probe.metadata.training
    assert training["epochs_run"] == training["best_epoch"] + 3 < 200


def test_input_statistics_are_those_of_the_training_rows() -> None:
    x, targets, row = synthetic()
    probe = fit(x, targets, row, plan=PLAN.model_copy(update={"epochs": 1}))
    names = [str(index) for index in range(ROWS)]
    parts = split_conversations(names, targets, PLAN.validation_share, PLAN.test_share, PLAN.seed)
    train = x[torch.isin(row, torch.tensor(parts["train"]))].double()
    torch.testing.assert_close(probe.tensors["input_mean"].double(), train.mean(0), rtol=0, atol=1e-6)
    deviation = probe.tensors["input_std"].double()
    torch.testing.assert_close(deviation, train.std(0, correction=0), rtol=1e-6, atol=0)
    expected = label_vectors(train.float(), targets[row][torch.isin(row, torch.tensor(parts["train"]))])
    assert torch.equal(probe.tensors["label_vectors"], expected)


def test_label_vectors_are_mean_of_positives_minus_mean_of_negatives() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, -4.0], [7.0, 8.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    expected = torch.tensor([[2.0 - 6.0, 1.0 - 2.0], [5.0 - 1.0, 2.0 - 0.0]])
    assert torch.equal(label_vectors(x, targets), expected)


def test_no_conversation_is_in_two_parts() -> None:
    _, targets, _ = synthetic()
    conversation = [f"q{index // 2}" for index in range(ROWS)]
    parts = split_conversations(conversation, targets, 0.1, 0.2, seed=3)
    names = [{conversation[index] for index in rows} for rows in parts.values()]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    assert sorted(index for rows in parts.values() for index in rows) == list(range(ROWS))


def test_rows_of_one_prompt_stay_together_where_prompts_are_many() -> None:
    many = [f"q{index // 2}" for index in range(ROWS)]
    assert conversations_of(many) == many
    assert len(set(conversations_of(["q"] * ROWS))) == ROWS


@pytest.mark.parametrize("positives", [0, 1, ROWS - 1, ROWS])
def test_a_label_needs_rows_on_both_sides(positives: int) -> None:
    x, targets, row = synthetic()
    targets[:, 1] = (torch.arange(ROWS) < positives).float()
    side = "with" if positives < MIN_ROWS else "without"
    count = min(positives, ROWS - positives)
    with pytest.raises(DataError, match=f"{count or 'no'} rows? {side} 'dry'.*; at least {MIN_ROWS}"):
        fit(x, targets, row)


def test_values_that_are_not_finite_are_refused() -> None:
    x, targets, row = synthetic()
    x[3, 4] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        fit(x, targets, row)
