"""k-steering's classifier pickles: every weight in its place, the source's own step, and what is refused."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ksteer_vllm import ProbeError
from ksteer_vllm.convert import convert, detect
from ksteer_vllm.probes.probe import Probe
from tests.workbench.convert.sources import (
    LAYERS,
    TOLERANCE,
    ActivationSteeringTrainer,
    D,
    MultiLabelSteeringModel,
    at_home,
    options,
    streams,
)

LABELS = ["warm", "cold", "dry"]


def saved(folder: Path, trainer: Any, **steering: Any) -> Path:
    """The files that k-steering 0.1.2's `save(folder, "tones")` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tones_classifier.pkl").write_bytes(pickle.dumps(trainer))
    config = {"train_layer": 2, "steering_strength": 1.5, "steer_layers": [1, 2], **steering}
    (folder / "tones_steering_config.json").write_text(json.dumps(config))
    (folder / "tones_metadata.json").write_text(json.dumps({"unique_labels": LABELS, "model_name": "m"}))
    return folder


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, MultiLabelSteeringModel]:
    """A folder as the package writes it, without the package: the same class names and attributes."""
    torch.manual_seed(1)
    classifier = MultiLabelSteeringModel(12, 3)
    with at_home():
        return saved(tmp_path / "made", ActivationSteeringTrainer(classifier)), classifier


def one_step(logits: Callable[[Tensor], Tensor], x: Tensor, alpha: float) -> Tensor:
    """x - alpha * gradient of (logit 1 - mean of logits 0 and 2): towards warm and dry, away from cold."""
    x = x.clone().requires_grad_()
    f = logits(x)
    (f[:, 1] - f[:, [0, 2]].mean(1)).sum().backward()
    assert x.grad is not None
    return (x - alpha * x.grad).detach()


def test_the_folder(
    made: tuple[Path, MultiLabelSteeringModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, classifier = made
    monkeypatch.setitem(sys.modules, "k_steering", None)  # to import it would fail
    assert detect(folder) == detect(folder / "tones_classifier.pkl") == "k-steering"
    probe = Probe.load(convert(folder, options()).save(tmp_path / "probe"))
    assert (probe.labels, probe.metadata.layer) == (tuple(LABELS), 1)  # hidden_states[2] is block 1's output
    assert probe.metadata.default_alpha == {"gradient": 1.5}
    assert probe.metadata.settings == {"unavailable": ["add", "random"]}
    assert probe.metadata.training["steer_layers"] == [1, 2]
    x = streams()
    assert torch.allclose(probe.logits(x), classifier.net(x), **TOLERANCE)
    step = one_step(classifier.net, x, 1.5)
    assert (step - x).abs().max() > 1e-2  # else the comparison says nothing
    assert torch.allclose(one_step(probe.logits, x, 1.5), step, **TOLERANCE)


@pytest.mark.parametrize("what", ["trainer", "classifier", "state_dict"])
@pytest.mark.parametrize("clf_type", ["mlp", "linear"])
def test_every_way_to_save_it(what: str, clf_type: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    classifier = MultiLabelSteeringModel(12, 3, clf_type)
    with at_home():
        trainer = ActivationSteeringTrainer(classifier)
        values = {"trainer": trainer, "classifier": classifier, "state_dict": classifier.state_dict()}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(values[what]))
        torch.save(values[what], tmp_path / "a.pt")
    for name in ("a.pkl", "a.pt"):
        probe = convert(tmp_path / name, options(labels=tuple(LABELS), layer=3), "k-steering")
        assert (probe.metadata.family, probe.metadata.layer) == (clf_type, 3)
        assert torch.allclose(_logits(probe, streams()), classifier.net(streams()), **TOLERANCE)


def _logits(probe: Probe, x: Tensor) -> Tensor:
    if probe.metadata.family == "mlp":
        return probe.logits(x)
    t = probe.tensors
    return (x - t["input_mean"]) / t["input_std"] @ t["weight"].T + t["bias"]


@pytest.mark.parity
@pytest.mark.parametrize("clf_type", ["mlp", "linear"])
def test_the_package_itself(clf_type: str, tmp_path: Path) -> None:
    """Trained, pickled and stepped by k-steering's own trainer (0.1.2)."""
    trainer_module = pytest.importorskip("k_steering.steering.trainer")
    config = pytest.importorskip("k_steering.steering.config").TrainerConfig(
        input_dim=D, num_labels=3, hidden_dim=12, clf_type=clf_type
    )
    torch.manual_seed(0)
    trainer = trainer_module.ActivationSteeringTrainer(config)
    trainer.fit(streams(30).numpy(), torch.eye(3)[torch.arange(30) % 3].numpy(), epochs=2)
    probe = convert(saved(tmp_path, trainer), options())
    for row in streams()[:, None]:  # the package averages over its batch, so one row at a time
        theirs = trainer.steer_activations(row, [0, 2], [1], alpha=5.0).cpu()
        assert (theirs - row).abs().max() > 1e-3
        assert torch.allclose(one_step(lambda x: _logits(probe, x), row, 5.0), theirs, **TOLERANCE)


def test_layers_and_labels_from_the_caller(made: tuple[Path, MultiLabelSteeringModel]) -> None:
    folder, _ = made
    assert convert(folder, options(layer=2)).metadata.layer == 2
    assert convert(folder, options(labels=("a", "b", "c"))).labels == ("a", "b", "c")
    with pytest.raises(ProbeError, match=r"layers: .* is k-steering, which has one layer"):
        convert(folder, options(layers=(1,)))
    with pytest.raises(ProbeError, match=r"labels: expected 3, got 2: a, b"):
        convert(folder, options(labels=("a", "b")))


@pytest.mark.parametrize("train_layer", [0, LAYERS, -1, None])
def test_a_layer_no_block_puts_out(train_layer: int | None, tmp_path: Path) -> None:
    """hidden_states[0] is the embedding, the last entry comes after the final norm."""
    with at_home():
        trainer = ActivationSteeringTrainer(MultiLabelSteeringModel(12, 3))
        saved(tmp_path, trainer, train_layer=train_layer)
    with pytest.raises(ProbeError, match=r"train_layer.*give --layer"):
        convert(tmp_path, options())


def test_what_is_refused(tmp_path: Path) -> None:
    def refusal(value: Any, **changes: Any) -> str:
        with at_home():
            (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(ProbeError) as error:
            convert(
                tmp_path / "a.pkl", options(**{"labels": tuple(LABELS), "layer": 1, **changes}), "k-steering"
            )
        assert str(error.value).startswith(str(tmp_path / "a.pkl"))
        return str(error.value)

    good = MultiLabelSteeringModel(12, 3)
    assert "torch.nn.modules.activation.GELU" in refusal(MultiLabelSteeringModel(12, 3, activation=nn.GELU))
    assert "expected k_steering" in refusal([1, 2])
    assert "classifier with x" in refusal({"x": torch.zeros(3)})
    assert "expected a tensor, found list" in refusal({"net.weight": [1.0], "net.bias": torch.zeros(3)})
    assert "expected a float tensor" in refusal(
        {"net.weight": torch.ones(3, D, dtype=torch.int64), "net.bias": 0}
    )
    assert "net.bias: shape" in refusal({"net.weight": torch.zeros(3, D), "net.bias": torch.zeros(3, 1)})
    assert "bias: shape (2,), expected (3,)" in refusal(
        {"net.weight": torch.zeros(3, D), "net.bias": torch.zeros(2)}
    )
    assert "b1: has values that are not finite" in refusal(_with(good, "net.0.bias", float("nan")))
    assert "give --labels" in refusal(good, labels=())
    assert "give --layer" in refusal(good, layer=None)
    assert "hidden size" not in refusal(
        MultiLabelSteeringModel(12, 3).net
    )  # a bare Sequential: found by name


def _with(model: MultiLabelSteeringModel, name: str, value: float) -> dict[str, Tensor]:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name][0] = value
    return state


def test_a_folder_with_none_or_several(tmp_path: Path) -> None:
    for count in (0, 2):
        for index in range(count):
            (tmp_path / f"{index}_classifier.pkl").write_bytes(b"")
        with pytest.raises(ProbeError, match=r"expected one file \*_classifier\.pkl, found"):
            convert(tmp_path, options(), "k-steering")
