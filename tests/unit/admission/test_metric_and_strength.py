"""Which probes can step in a metric, and what `strength` multiplies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ksteer_vllm import ModelIdentity, SpecError
from ksteer_vllm.admission.catalog import Catalog
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig, ResolvedConfig
from ksteer_vllm.probes.probe import Probe
from testbed.families import SCALE, random_family_probe
from testbed.models import HIDDEN_SIZE, NUM_LAYERS

MODEL = ModelIdentity(name="served", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
WARM: dict[str, Any] = {"target": ["warm"], "alpha": 1.0}


def made(family: str, *, deviations: float | None = None, up: bool = False, **metadata: Any) -> Probe:
    """A probe of a family with one deviation for all coordinates, and with or without a covariance."""
    base = random_family_probe(family, **metadata)
    tensors = dict(base.tensors)
    if deviations is not None:
        tensors["input_std"] = torch.full((HIDDEN_SIZE,), deviations)
    if up:
        tensors["covariance_up"] = torch.randn(
            len(tensors["w1" if family == "mlp" else "weight"]), HIDDEN_SIZE
        )
    return Probe(base.metadata, tensors)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ResolvedConfig:
    root = tmp_path_factory.mktemp("probes")
    scales = {"variance": {1: 7.0}, "covariance": {1: 6.0}}
    probes = {
        "old": made("mlp"),
        "raw": made("mlp", deviations=1.0, metric_scale=scales),
        "compat": made("mlp", up=True, settings={"compat": "pip-0.1.2"}),
        "both": made(
            "mlp", up=True, activation_scale=SCALE, metric_scale=scales, default_alpha={"gradient": 4.0}
        ),
        "linear": made("linear", up=True, metric_scale=scales),
        "vectors": random_family_probe("vectors"),
        "ace": random_family_probe("ace"),
        "sae": random_family_probe("sae"),
    }
    folders = {name: probe.save(root / name) for name, probe in probes.items()}
    return resolve_config(EngineConfig.parse({"probes": folders, "layers": "all"}), MODEL)


@pytest.fixture(scope="module")
def registry(config: ResolvedConfig) -> Registry:
    return Registry.from_config(config)


def canonical(registry: Registry, spec: dict[str, Any]) -> dict[str, Any]:
    (edit,) = registry.admit(spec).edits
    return edit.canonical


@pytest.mark.parametrize(
    ("probe", "metric"),
    [
        ("old", "variance"),
        *((name, metric) for name in ("both", "linear") for metric in ("variance", "covariance")),
    ],
)
def test_a_metric_is_part_of_the_edit(registry: Registry, probe: str, metric: str) -> None:
    """Folders of before have deviations, which is all that the variance needs; a raw unit needs no scale."""
    spec = {"probe": probe, **WARM}
    raw, with_metric = (registry.admit({**spec, "metric": name}).edits[0] for name in ("raw", metric))
    assert with_metric.canonical == {**raw.canonical, "metric": metric}
    assert "metric" not in raw.canonical
    assert raw.fingerprint != with_metric.fingerprint


NO_DEVIATIONS = ["has no variance for layer 1", "all 1", "paper", "it has it for: none", "leave out metric"]
REFUSALS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"probe": "raw", "metric": "variance"}, "metric", ["'raw'", *NO_DEVIATIONS]),
    ({"probe": "raw", "metric": "variance", "unit": "normalised"}, "metric", NO_DEVIATIONS),
    ({"probe": "compat", "metric": "variance"}, "metric", ["'compat'", "has no variance"]),
    ({"probe": "compat", "metric": "covariance"}, "metric", ["'compat'", "has no covariance"]),
    (
        {"probe": "old", "metric": "covariance"}, "metric",
        ["has no covariance for layer 1", "no tensor covariance_up", "Fit the probe again"],
    ),
    (
        {"probe": "old", "metric": "variance", "unit": "normalised"}, "unit",
        ["no metric_scale of variance for layer 1", "it has: none", "Fit the probe again", "unit raw"],
    ),
    (
        {"probe": "both", "metric": "covariance", "unit": "normalised", "layers": [1, 2]}, "unit",
        ["no metric_scale of covariance for layer 2", "it has: 1"],
    ),
    ({"probe": "both", "method": "add", "metric": "variance"}, "metric", ["not used by method 'add'"]),
    ({"probe": "vectors", "metric": "variance"}, "metric", ["not used by method 'add'"]),
    ({"probe": "both", "metric": "variance", "preserve_norm": True}, "preserve_norm", ["metric 'variance'"]),
    (
        {"probe": "both", "metric": "variance", "compat": "pip-0.1.2"}, "metric",
        ["pip-0.1.2 has no counterpart"],
    ),
    ({"probe": "both", "metric": "variance", "alpha": None}, "alpha", ["required with metric 'variance'"]),
    ({"probe": "both", "strength": 1e13}, "strength", ["alpha * strength", "1e+12"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "words"), REFUSALS, ids=str)
def test_refusals(registry: Registry, spec: dict[str, Any], field: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as refusal:
        registry.admit({**WARM, **spec})
    assert refusal.value.field == field
    missing = [word for word in words if word not in str(refusal.value)]
    assert not missing, f"{missing} not in: {refusal.value}"


def test_what_the_tensors_show_reaches_every_front_end(config: ResolvedConfig) -> None:
    """By the configuration for probes of the start, by the catalog for those loaded later: both are JSON."""
    again = ResolvedConfig.model_validate_json(config.model_dump_json())
    catalog = Catalog.model_validate_json(Catalog.of(again).model_dump_json())
    assert catalog.probes["both"].metric_layers == {"variance": (1,), "covariance": (1,)}
    assert catalog.probes["raw"].metric_layers == {}


@pytest.mark.parametrize(
    ("spec", "alpha"),
    [
        ({"strength": 0.5}, 0.5),
        ({"strength": 0}, 0.0),
        ({"alpha": -2, "strength": 1.5}, -3.0),
        ({"alpha": None, "strength": 0.5}, 2.0),
        ({"alpha": 0.2, "unit": "normalised", "strength": 2}, 0.4),
        ({"method": "add", "alpha": 3, "strength": 2}, 6.0),
        ({"compat": "pip-0.1.2", "alpha": None, "strength": 3}, 3.0),
    ],
    ids=str,
)
def test_strength_multiplies_alpha_before_anything_sees_it(
    registry: Registry, spec: dict[str, Any], alpha: float
) -> None:
    found = canonical(registry, {"probe": "both", **WARM, **spec})
    assert found["alpha"] == alpha
    assert str(found["alpha"]) != "-0.0"
    assert "strength" not in found


def test_strength_multiplies_a_methods_own_default(registry: Registry) -> None:
    assert canonical(registry, {"probe": "ace", "target": ["warm"], "strength": 0.25})["alpha"] == 0.25


@pytest.mark.parametrize(
    "spec",
    [
        {"probe": "both", "method": "reflect", "avoid": ["warm"]},
        {"probe": "sae", "method": "clamp", "values": {"warm": 1.0}},
    ],
    ids=str,
)
def test_a_method_without_alpha_takes_no_strength(registry: Registry, spec: dict[str, Any]) -> None:
    assert "strength" not in canonical(registry, {**spec, "strength": 1})
    with pytest.raises(SpecError, match="not used by method") as refusal:
        registry.admit({**spec, "strength": 0.5})
    assert refusal.value.field == "strength"


def test_label_weights_stay_ratios(registry: Registry) -> None:
    both = [canonical(registry, {"probe": "both", "target": {"warm": w}, "alpha": 1}) for w in (1, 0.5)]
    assert both[0] == both[1]
