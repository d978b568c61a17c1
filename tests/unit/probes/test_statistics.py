"""What a probe folder says about the metrics it offers, and about the edit it was calibrated for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import ModelIdentity, Probe, ProbeError, ProbeMetadata
from testbed.families import random_family_probe
from testbed.probes import random_probe

OLD_DIGEST = "b126fd3a3040fa7e015e5a5645a83eeed67b3744a40b25be473ebc45f961b7e1"
"""Of `counted_probe`, saved before folders could hold metrics or a default edit."""


def counted(*shape: int) -> Tensor:
    """1/n, 2/n ... 1."""
    n = math.prod(shape)
    return torch.arange(1, n + 1, dtype=torch.float32).reshape(shape) / n


def counted_probe() -> Probe:
    model = ModelIdentity(name="m", model_type="llama", hidden_size=4, num_layers=3)
    metadata = ProbeMetadata(
        family="linear", labels=("a", "b"), layer=1, model=model, activation_scale={1: 2.5},
        default_alpha={"gradient": 3.0},
    )  # fmt: skip
    tensors = {"weight": counted(2, 4), "bias": counted(2), "input_mean": counted(4), "input_std": counted(4)}
    return Probe(metadata, tensors)


def test_the_digest_of_an_old_folder_is_what_it_was(tmp_path: Path) -> None:
    assert Probe.load(counted_probe().save(tmp_path)).metadata.digest == OLD_DIGEST


@pytest.mark.parametrize(
    "changes",
    [
        {"metric_scale": {"variance": {1: 2.0}}},
        {"metric_scale": {"variance": {1: 3.0}}},
        {"default_edit": {"alpha": 1.0}},
        {"default_edit": {"alpha": 1.0, "metric": "variance"}},
    ],
    ids=str,
)
def test_the_digest_covers_scales_and_the_default_edit(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded = Probe.load(counted_probe().with_metadata(**changes).save(tmp_path))
    assert loaded.metadata.digest != OLD_DIGEST
    assert all(getattr(loaded.metadata, name) == value for name, value in changes.items())


def with_tensors(probe: Probe, **tensors: Tensor) -> Probe:
    return Probe(probe.metadata, {**probe.tensors, **tensors})


def stacked(probe: Probe, layers: tuple[int, ...], **tensors: Tensor) -> Probe:
    """The same tensors at every layer."""
    fields = {**probe.metadata.model_dump(), "layers": layers, "layer": layers[0]}
    every = {name: torch.stack([tensor] * len(layers)) for name, tensor in probe.tensors.items()}
    return Probe(ProbeMetadata.model_validate(fields), {**every, **tensors})


def test_the_tensors_say_which_metrics_there_are(tmp_path: Path) -> None:
    probe = random_probe()
    assert probe.metadata.metric_layers == {"variance": (1,)}
    both = with_tensors(probe, covariance_up=torch.ones(48, 64))
    assert Probe.load(both.save(tmp_path)).metadata.metric_layers == {"variance": (1,), "covariance": (1,)}
    assert with_tensors(probe, input_std=torch.ones(64)).metadata.metric_layers == {}
    assert probe.with_metadata(settings={"compat": "pip-0.1.2"}).metadata.metric_layers == {}
    assert random_family_probe("vectors").metadata.metric_layers == {}


def test_metrics_are_by_layer_where_the_tensors_are() -> None:
    linear = random_family_probe("linear")
    std = torch.stack([linear.tensors["input_std"], torch.ones(64)])
    mixed = stacked(linear, (1, 3), input_std=std, covariance_up=torch.ones(2, 3, 64))
    assert mixed.metadata.metric_layers == {"variance": (1,), "covariance": (1, 3)}


def test_a_folder_cannot_claim_a_metric(tmp_path: Path) -> None:
    """Only its tensors can: otherwise a step in a metric would silently be a raw one."""
    folder = with_tensors(random_probe(), input_std=torch.ones(64)).save(tmp_path)
    path = folder / "probe.json"
    claim = {**json.loads(path.read_text()), "metric_layers": {"variance": [1]}}
    assert "metric_layers" not in json.loads(path.read_text())
    path.write_text(json.dumps(claim))
    assert Probe.load_metadata(folder).metric_layers == {}
    assert Probe.load(folder).metadata.metric_layers == {}


@pytest.mark.parametrize(
    ("family", "shape", "words"),
    [
        ("mlp", (47, 64), r"covariance_up: shape \(47, 64\), expected \(48, 64\) \(h d\)"),
        ("linear", (3, 63), r"covariance_up: shape \(3, 63\), expected \(3, 64\) \(K d\)"),
        ("vectors", (3, 64), "holds 'covariance_up', 'vectors'; expected 'vectors'"),
    ],
)
def test_the_optional_tensor_is_checked(family: str, shape: tuple[int, int], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        with_tensors(random_family_probe(family), covariance_up=torch.ones(shape))


def test_the_optional_tensor_has_the_layers_dimension(tmp_path: Path) -> None:
    probe = stacked(random_family_probe("linear"), (0, 2), covariance_up=torch.ones(2, 3, 64))
    assert Probe.load(probe.save(tmp_path)).at(2)["covariance_up"].shape == (3, 64)
    with pytest.raises(ProbeError, match=r"covariance_up: shape .*\(layers K d\)"):
        stacked(random_family_probe("linear"), (0, 2), covariance_up=torch.ones(3, 64))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric_scale": {"fisher": {1: 1.0}}}, "metric_scale"),
        ({"metric_scale": {"variance": {1: 0.0}}}, "metric_scale"),
        ({"metric_scale": {"variance": {9: 1.0}}}, "no layer 9"),
        ({"default_edit": {"target": ["warm"]}}, "default_edit.target: not a field of a default edit"),
        ({"default_edit": {"preserve_norm": True}}, "default_edit.preserve_norm: not a field"),
        ({"default_edit": {"alpha": "much"}}, "default_edit.alpha"),
        ({"default_edit": {"num_steps": 0}}, "default_edit.num_steps"),
        ({"default_edit": {"metric": "fisher"}}, "default_edit.metric"),
        ({"default_edit": {"until": {"target": 2}}}, "default_edit.until.target"),
        ({"default_edit": {"method": "ace"}}, "default_edit.method: family 'mlp' has gradient"),
        ({"default_edit": {"method": ["gradient"]}}, "default_edit.method"),
        (
            {"default_edit": {"method": "add", "metric": "variance"}},
            "default_edit.metric: not used by method 'add'",
        ),
        ({"default_edit": {"layers": [7]}}, "default_edit.layers: the model has no layer 7"),
        ({"default_edit": {"where": {"reply": True}}}, "default_edit.where"),
        ({"default_edit": {"fade": 0}}, "default_edit.fade"),
        ({"label_alpha": {"casual": 1.0}}, "label_alpha: needs a default_edit with an alpha"),
        ({"default_edit": {"alpha": 1.0}, "label_alpha": {"odd": 1.0}}, "label_alpha: no label 'odd'"),
    ],
    ids=str,
)
def test_metadata_that_does_not_hold(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        random_probe().with_metadata(**changes)


def test_other_families_have_no_scales_of_metrics() -> None:
    with pytest.raises(ValueError, match="metric_scale: no method of family 'vectors' takes a metric"):
        random_family_probe("vectors", metric_scale={"variance": {1: 1.0}})


def test_a_default_edit_names_layers_with_tensors() -> None:
    probe = stacked(random_family_probe("linear"), (1, 3))
    assert probe.with_metadata(default_edit={"layers": [3]}).metadata.steered_layers == (3,)
    with pytest.raises(ValueError, match=r"default_edit\.layers: no tensors for layer 2"):
        probe.with_metadata(default_edit={"layers": [2]})
