"""The threshold of a condition: the best cut, what it reads, and rows it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksteer_vllm import UsageError
from ksteer_vllm.data.rows import data_digest
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import FitTask, condition
from ksteer_vllm.fit.condition import best_cut, find_condition, scores_of
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import fits, load
from tests.workbench.fit.synthetic import LABELS, MODEL, synthetic_rows, synthetic_task


def fitted(method: str, **options: Any) -> tuple[FitTask, Probe]:
    task = synthetic_task(method, **options)
    probe: Probe = load(fits()[method])(task)
    return task, probe


def f1(called: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((called & truth).sum()) / float(called.sum() + truth.sum())


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30))
def test_no_cut_has_a_higher_f1(data: list[tuple[int, bool]]) -> None:
    score = np.array([value for value, _ in data]) / 8
    truth = np.array([shown for _, shown in data])
    if not truth.any() or len(set(score)) == 1:
        return
    cut = best_cut(torch.from_numpy(score), torch.from_numpy(truth))
    every = [
        f1(called, truth)
        for value in np.unique(score)[:-1] + 1 / 16
        for called in (score > value, score < value)
    ]
    found = cut.holds(torch.from_numpy(score)).numpy()
    assert f1(found, truth) == pytest.approx(max(every))
    assert cut.value not in score


def test_the_widest_of_equally_good_gaps_is_cut_in_the_middle() -> None:
    """Of these, all but the lowest and the highest alone are equally good: F1 2/3 either way."""
    truth = torch.tensor([False, True, False, False, True])
    for score, middle in (([0.0, 0.2, 0.3, 0.4, 0.5], 0.1), ([0.2, 0.3, 0.4, 0.5, 0.9], 0.7)):
        assert best_cut(torch.tensor(score), truth) == condition.Cut("above", middle)
        assert best_cut(-torch.tensor(score), truth) == condition.Cut("below", -middle)
    close = torch.tensor([0.123456, 0.123457])
    cut = best_cut(close, torch.tensor([False, True]))
    assert close[0] < cut.value < close[1]
    with pytest.raises(DataError, match="the same score"):
        best_cut(torch.ones(5), truth)


def test_what_is_read_is_a_probability_or_a_cosine() -> None:
    task, probe = fitted("mlp", epochs=2)
    x = task.activations().x[:20]
    for index, label in enumerate(LABELS):
        expected = torch.sigmoid(probe.logits(x.double()))[:, index]
        torch.testing.assert_close(scores_of(probe, label, x), expected)
        _, linear = fitted("linear")
        t = {name: value.double().numpy() for name, value in linear.tensors.items()}
        logit = ((x.numpy() - t["input_mean"]) / t["input_std"]) @ t["weight"][index] + t["bias"][index]
        np.testing.assert_allclose(scores_of(linear, label, x), 1 / (1 + np.exp(-logit)), rtol=1e-9)
        _, caa = fitted("caa")
        v = caa.tensors["vectors"][index].double().numpy()
        cosine = x.double().numpy() @ v / np.linalg.norm(x.double().numpy(), axis=1) / np.linalg.norm(v)
        np.testing.assert_allclose(scores_of(caa, label, x), cosine, rtol=1e-9)


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> FitTask:
    """`find_condition` finds these activations instead of starting an engine."""
    task = synthetic_task("caa")
    found = next(iter(task.recorded.values()))
    monkeypatch.setattr("ksteer_vllm.fit.task.collect_activations", lambda *_, **__: found)
    monkeypatch.setattr("ksteer_vllm.fit.task.model_of", lambda *_: MODEL)
    return task


@pytest.mark.parametrize("method", ["mlp", "linear", "caa"])
def test_a_condition_finds_the_rows_to_steer(at_hand: FitTask, method: str) -> None:
    """Chosen on the validation part and reported on the test part of the fit's own split."""
    _, probe = fitted(method, seed=4)
    assert probe.metadata.training["data_digest"] == data_digest(at_hand.rows)
    found = find_condition("synthetic", at_hand.rows, probe, "warm")
    at_hand.options = {"seed": 4}
    tokens, parts = at_hand.activations(), at_hand.parts
    score = scores_of(probe, "warm", tokens.x)
    of = {name: torch.isin(tokens.row, torch.tensor(rows)) for name, rows in parts.items()}
    truth = tokens.targets[:, 0] > 0
    assert found.cut == best_cut(score[of["validation"]], truth[of["validation"]])
    assert found.cut.side == "above"
    held = found.cut.holds(score[of["test"]]).numpy()
    assert found.metrics["tokens"]["f1"] == pytest.approx(f1(held, truth[of["test"]].numpy()))
    assert found.metrics["rows"]["f1"] >= found.metrics["tokens"]["f1"] > found.metrics["always"]["f1"]
    assert found.as_spec("tone") == {"probe": "tone", "label": "warm", "above": found.cut.value}


def test_rows_that_are_new_to_the_probe_all_count(at_hand: FitTask) -> None:
    """Fitted on other rows: the cut is chosen on all that are not reported on."""
    task = synthetic_task("caa", synthetic_rows(seed=9))
    probe: Probe = load(fits()["caa"])(task)
    found = find_condition("synthetic", at_hand.rows, probe, "warm")
    at_hand.labels = ("warm",)
    tokens, parts = at_hand.activations(), at_hand.parts
    chosen = ~torch.isin(tokens.row, torch.tensor(parts["test"]))
    assert found.cut == best_cut(scores_of(probe, "warm", tokens.x[chosen]), tokens.targets[chosen, 0] > 0)


def test_another_label_may_say_which_rows_to_steer(at_hand: FitTask) -> None:
    _, probe = fitted("linear")
    own = find_condition("synthetic", at_hand.rows, probe, "dry")
    assert find_condition("synthetic", at_hand.rows, probe, "dry", steer="dry") == own
    other = find_condition("synthetic", at_hand.rows, probe, "dry", steer="warm")
    assert other.metrics["tokens"]["f1"] < own.metrics["tokens"]["f1"]


def test_what_cannot_be_a_condition_is_refused(at_hand: FitTask) -> None:
    rows = synthetic_rows()
    _, ace = fitted("ace")
    _, caa = fitted("caa")
    elsewhere = caa.with_metadata(model={**MODEL.model_dump(), "model_type": "gpt2"})
    for probe, arguments, text in (
        (ace, {"label": "warm"}, "family 'ace' has no score; mlp, linear and vectors"),
        (caa, {"label": "hot"}, "'hot' is not in the probe; it has: warm, dry"),
        (elsewhere, {"label": "warm"}, "model_type is llama, the probe was fitted where it is gpt2"),
    ):
        with pytest.raises(UsageError, match=text):
            find_condition("synthetic", rows, probe, **arguments)
    with pytest.raises(DataError, match="hot in no row"):
        find_condition("synthetic", rows, caa, "warm", steer="hot")
