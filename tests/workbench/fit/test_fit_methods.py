"""Every closed-form fit against its formula in numpy, on made-up activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ksteer_kernels.reference.vectors import matched_random
from ksteer_vllm import UsageError
from ksteer_vllm.data.positions import REPLY, FirstPositions
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import Activations, FitTask, fit_to_rows
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import fits, load
from tests.workbench.fit.synthetic import LABELS, synthetic_rows, synthetic_task

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
"""Tensors are computed in float64 and stored as float32 (relative rounding 6e-8, of sums of a few terms)."""

CLOSED_FORM = ("linear", "caa", "random", "ace")
FAMILY = {"mlp": "mlp", "linear": "linear", "caa": "vectors", "random": "vectors", "ace": "ace"}


def fitted(task: FitTask) -> Probe:
    probe: Probe = load(fits()[task.method])(task)
    return probe


def training_data(task: FitTask) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """x [N, d] and shown [N, K] of the training rows."""
    train = task.activations().of_rows(task.parts["train"])
    return train.x.double().numpy(), train.targets.numpy() > 0


def means(task: FitTask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per label the mean of the training tokens that show it and of those that do not."""
    x, shown = training_data(task)
    columns = range(shown.shape[1])
    return (
        np.stack([x[shown[:, k]].mean(0) for k in columns]),
        np.stack([x[~shown[:, k]].mean(0) for k in columns]),
    )


def test_every_fit_that_is_named_is_there() -> None:
    assert {"mlp", "linear", "caa", "actadd", "random", "ace"} <= set(fits())
    assert all(callable(load(path)) for path in fits().values())


@pytest.mark.parametrize("method", FAMILY)
def test_every_method_has_the_same_split_and_scale(method: str) -> None:
    task = synthetic_task(method, seed=5)
    probe = fitted(task)
    assert probe.metadata.family == FAMILY[method]
    assert probe.metadata.training["method"] == method
    assert probe.metadata.training["split"] == {
        "train": {"rows": 84, "tokens": 504},
        "validation": {"rows": 12, "tokens": 72},
        "test": {"rows": 24, "tokens": 144},
    }
    assert task.parts == synthetic_task("caa", seed=5).parts != synthetic_task("caa", seed=6).parts
    x, _ = training_data(task)
    scale = np.linalg.norm(x - x.mean(0), axis=1).mean()
    assert probe.metadata.activation_scale == pytest.approx({2: scale}, rel=1e-9)
    assert probe.metadata.metrics["tokens"]["count"] == 144


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_only_training_rows_are_fitted(method: str) -> None:
    """Other values in the validation and test rows change no tensor; in a training row, they do."""
    task = synthetic_task(method)
    before = fitted(task).tensors
    found = task.recorded[REPLY]
    for part, changes in (("validation", False), ("test", False), ("train", True)):
        x = found.streams[2].clone()
        x[torch.isin(found.row, torch.tensor(task.parts[part]))] *= -2
        other = replace(task, recorded={REPLY: replace(found, streams={2: x})})
        after = fitted(other).tensors
        assert any(not torch.equal(before[name], after[name]) for name in before) == changes, part


def test_caa_is_the_difference_of_means() -> None:
    task = synthetic_task("caa")
    positive, negative = means(task)
    probe = fitted(task)
    np.testing.assert_allclose(probe.tensors["vectors"], positive - negative, **TOLERANCE)
    mlp = fitted(synthetic_task("mlp", epochs=1)).tensors["label_vectors"]
    assert torch.equal(probe.tensors["vectors"], mlp)
    assert probe.metadata.metrics["tokens"]["mean"].keys() == {"auroc", "average_precision"}
    assert probe.metadata.metrics["tokens"]["mean"]["auroc"] > 0.9


def test_ace_lands_on_the_means() -> None:
    """x' = x + r^((a0 . r^) + alpha |r| - r^ . x): at alpha 0 and 1 the coordinate along r^ is the means'."""
    task = synthetic_task("ace")
    positive, negative = means(task)
    tensors = fitted(task).tensors
    np.testing.assert_allclose(tensors["directions"], positive - negative, **TOLERANCE)
    np.testing.assert_allclose(tensors["negatives_mean"], negative, **TOLERANCE)
    x = np.random.default_rng(0).normal(size=(50, x_size(task)))
    for r, a0, without, shown in zip(
        tensors["directions"].double().numpy(),
        tensors["negatives_mean"].double().numpy(),
        negative,
        positive,
        strict=True,
    ):
        unit = r / np.linalg.norm(r)
        for alpha, mean in ((0, without), (1, shown)):
            edited = x + np.outer(a0 @ unit + alpha * np.linalg.norm(r) - x @ unit, unit)
            np.testing.assert_allclose(edited @ unit, mean @ unit, **TOLERANCE)


def x_size(task: FitTask) -> int:
    return task.identity.hidden_size


def test_random_has_the_norms_and_angles_of_caa_and_other_directions() -> None:
    caa = fitted(synthetic_task("caa", seed=3)).tensors["vectors"]
    task = synthetic_task("random", seed=3)
    probe = fitted(task)
    vectors = probe.tensors["vectors"]
    assert torch.equal(vectors, matched_random(caa, 3).float())
    assert torch.equal(vectors, fitted(synthetic_task("random", seed=3)).tensors["vectors"])
    assert not torch.allclose(vectors, matched_random(caa, 4).float(), rtol=0.1)
    cosines = torch.cosine_similarity(vectors, caa)
    assert cosines.abs().max() < 0.9  # of 12 dimensions: the chance of a nearer one is below 1e-4


@settings(max_examples=50)
@given(labels=st.integers(1, 8), size=st.integers(1, 24), rank=st.integers(1, 8), seed=st.integers(0, 1000))
def test_a_rotation_keeps_every_inner_product(labels: int, size: int, rank: int, seed: int) -> None:
    """Also where vectors depend on each other, and where labels outnumber dimensions."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(labels, rank)) @ rng.normal(size=(rank, size))
    other = matched_random(torch.from_numpy(vectors), seed).numpy()
    gram = vectors @ vectors.T
    np.testing.assert_allclose(other @ other.T, gram, rtol=0, atol=1e-5 * np.abs(gram).max())
    mix = rng.normal(size=labels)
    length = np.linalg.norm(mix @ vectors)
    assert np.linalg.norm(mix @ other) == pytest.approx(
        length, abs=1e-5 * np.abs(mix) @ np.sqrt(gram.diagonal())
    )


def test_the_linear_probe_is_at_the_minimum() -> None:
    """The objective's gradient, per token, is as small as the solver is asked for (1e-4); at 0 it is not."""
    task = synthetic_task("linear", l2=2.0)
    x, shown = training_data(task)
    probe = fitted(task)
    tensors = {name: tensor.double().numpy() for name, tensor in probe.tensors.items()}
    np.testing.assert_allclose(tensors["input_mean"], x.mean(0), **TOLERANCE)
    np.testing.assert_allclose(tensors["input_std"], x.std(0), **TOLERANCE)
    z = (x - tensors["input_mean"]) / tensors["input_std"]

    def slope(weight: NDArray[np.float64], bias: NDArray[np.float64]) -> float:
        wrong = 1 / (1 + np.exp(-(z @ weight.T + bias))) - shown
        return float(np.abs((wrong.T @ z + 2.0 * weight) / len(z)).max())

    assert slope(tensors["weight"], tensors["bias"]) < 2e-4
    assert slope(0 * tensors["weight"], 0 * tensors["bias"]) > 0.05
    assert probe.metadata.metrics["tokens"]["mean"]["auroc"] > 0.9
    assert probe.metadata.metrics["replies"]["mean"]["accuracy"] > 0.9


def test_the_linear_probe_has_one_gradient_everywhere() -> None:
    """weight / input_std: W with the standardisation folded in."""
    tensors = fitted(synthetic_task("linear")).at(2)
    x = torch.randn(7, len(tensors["input_mean"]), dtype=torch.float64, requires_grad=True)
    logits = (x - tensors["input_mean"]) / tensors["input_std"] @ tensors["weight"].T + tensors["bias"]
    for index, folded in enumerate(tensors["weight"] / tensors["input_std"]):
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), x, retain_graph=True)
        torch.testing.assert_close(gradient, folded.expand(7, -1))


def test_actadd_is_the_mean_over_positions_of_the_differences() -> None:
    rows = synthetic_rows()
    lengths = [4 if index % 3 else 2 for index in range(len(rows))]
    task = synthetic_task("actadd", rows, window=FirstPositions(4), start=1, lengths=lengths, first=4)
    probe = fitted(task)
    train = task.activations(FirstPositions(4)).of_rows(task.parts["train"])
    x, shown, position = train.x.double().numpy(), train.targets.numpy() > 0, train.position.numpy()
    expected = np.stack(
        [
            np.mean(
                [
                    x[shown[:, k] & (position == p)].mean(0) - x[~shown[:, k] & (position == p)].mean(0)
                    for p in (1, 2, 3, 4)
                ],
                axis=0,
            )
            for k in range(len(LABELS))
        ]
    )
    np.testing.assert_allclose(probe.tensors["vectors"], expected, **TOLERANCE)
    assert probe.metadata.default_where == {"prompt": [1, 5]}
    assert probe.metadata.training["positions"].startswith("the first 4 tokens")
    assert probe.metadata.metrics["tokens"]["mean"]["auroc"] > 0.9


def test_one_contrast_pair_is_enough_for_actadd_alone() -> None:
    rows = [
        LabelledRow(prompt="I", reply="love", labels=("warm",)),
        LabelledRow(prompt="I", reply="hate", labels=()),
    ]
    task = synthetic_task("actadd", rows, window=FirstPositions(3), labels=("warm",), lengths=3, first=3)
    x = task.activations(FirstPositions(3)).x
    probe = fitted(task)
    torch.testing.assert_close(probe.tensors["vectors"][0], (x[:3] - x[3:]).mean(0))
    assert probe.metadata.metrics == {}
    with pytest.raises(DataError, match=r"1 row with 'warm' \(row 1\); at least 10"):
        fitted(synthetic_task("caa", rows, labels=("warm",)))
    for broken, text in (
        (
            synthetic_task("actadd", rows[:1], window=FirstPositions(3), labels=("warm",), first=3),
            "no contrast",
        ),
        (
            synthetic_task(
                "actadd", rows, window=FirstPositions(3), labels=("warm",), lengths=[2, 3], first=3
            ),
            "have 2 tokens at most; choose 2 positions or fewer",
        ),
    ):
        with pytest.raises(DataError, match=text):
            fitted(broken)


@pytest.mark.parametrize("method", ["caa", "random", "ace"])
def test_a_label_that_moves_nothing_is_refused(method: str) -> None:
    task = synthetic_task(method)
    found = task.recorded[REPLY]
    flat = Activations({2: torch.ones_like(found.streams[2])}, found.row, found.position, found.model)
    with pytest.raises(DataError, match="no direction"):
        fitted(replace(task, recorded={REPLY: flat}))


@pytest.mark.parametrize("method", [*CLOSED_FORM, "mlp"])
def test_values_that_are_not_finite_are_refused(method: str) -> None:
    task = synthetic_task(method)
    task.recorded[REPLY].streams[2][3, 4] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        fitted(task)


def test_unknown_methods_and_options_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown 'magic'; known: mlp, linear, caa, actadd, random, ace"):
        fit_to_rows("nowhere", synthetic_rows(), "magic")
    with pytest.raises(UsageError, match="method 'caa' takes no width; it takes: seed"):
        fitted(synthetic_task("caa", width=3))
    with pytest.raises(UsageError, match=r"first: .*greater than or equal to 1 \(got '0'\)"):
        fitted(synthetic_task("actadd", first=0))
