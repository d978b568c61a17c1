"""A probe's default edit: requests take from it what they leave out, and nothing contradicts it unseen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ksteer_vllm import ModelIdentity, SpecError
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig
from testbed.families import SCALE, random_family_probe
from testbed.models import HIDDEN_SIZE, NUM_LAYERS

MODEL = ModelIdentity(name="served", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
LABELS = {"target": ["warm"], "avoid": ["cold"]}
CALIBRATED: dict[str, Any] = {
    "metric": "variance",
    "unit": "normalised",
    "loss": "softmin",
    "num_steps": 4,
    "step_decay": 0.9,
    "layers": [0, 2],
    "where": {"generation": [0, 16]},
    "alpha": 0.3,
    "until": {"target": 0.9},
    "cap": 0.5,
    "fade": 40,
}
MEASURED: dict[str, Any] = {
    "activation_scale": SCALE, "metric_scale": {"variance": dict.fromkeys(SCALE, 7.0)},
    "default_alpha": {"gradient": 9.0, "add": 2.0}, "default_where": {"prompt": [0, None]},
}  # fmt: skip


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("probes")
    defaults: dict[str, dict[str, Any]] = {
        "knob": CALIBRATED,
        "adds": {"method": "add", "alpha": 0.5, "unit": "normalised"},
        "unmeasured": {"unit": "normalised"},
        "one side": {"alpha": 2.0, "until": {"avoid": 0.1}},
    }
    probes = {
        name: random_family_probe("mlp", **MEASURED, default_edit=default).save(root / name)
        for name, default in defaults.items()
    }
    probes["own strengths"] = random_family_probe(
        "mlp", **MEASURED, default_edit=CALIBRATED, label_alpha={"warm": 0.6}
    ).save(root / "own")
    config = EngineConfig.parse(
        {"probes": probes, "presets": {"half": {"probe": "knob", **LABELS, "strength": 0.5}}}
    )
    return Registry.from_config(resolve_config(config, MODEL))


def canonical(registry: Registry, spec: Mapping[str, Any]) -> dict[str, Any]:
    (edit,) = registry.admit(dict(spec)).edits
    return edit.canonical


def test_a_request_of_labels_alone_gets_the_whole_edit(registry: Registry) -> None:
    found = canonical(registry, {"probe": "knob", **LABELS})
    assert {name: found[name] for name in CALIBRATED} == CALIBRATED
    assert found["method"] == "gradient"
    assert registry.open_layers == (0, 1, 2), "the default edit's layers are open"


@pytest.mark.parametrize(
    ("fields", "alpha"),
    [
        ({"target": ["warm"]}, 0.6),
        ({"target": ["cold"]}, 0.3),
        ({"target": {"warm": 1, "cold": 2}}, 0.4),
        ({"avoid": ["warm"]}, 0.6),
        ({"target": ["cold"], "avoid": ["warm"]}, 0.3),
        ({"target": ["warm"], "strength": 0.5}, 0.3),
        ({"target": ["warm"], "alpha": 0.1}, 0.1),
    ],
    ids=str,
)
def test_a_label_may_have_a_strength_of_its_own(
    registry: Registry, fields: dict[str, Any], alpha: float
) -> None:
    found = canonical(registry, {"probe": "own strengths", "until": None, "loss": "mean", **fields})
    assert found["alpha"] == pytest.approx(alpha)


def test_defaults_and_their_spelling_share_cached_blocks(registry: Registry) -> None:
    specs = [
        {"probe": "knob", **LABELS},
        {"probe": "knob", **LABELS, "method": "gradient", "strength": 1},
        {"probe": "knob", **LABELS, **CALIBRATED},
        {"probe": "knob", **LABELS, "alpha": None, "layers": None, "where": None, "method": None},
        {"probe": "knob", **LABELS, "alpha": 0.15, "strength": 2},
    ]
    assert len({registry.admit(spec).edits[0].fingerprint for spec in specs}) == 1
    assert len({str(canonical(registry, spec)) for spec in specs}) == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"num_steps": 2},
        {"loss": "mean"},
        {"layers": [1]},
        {"alpha": 1.0},
        {"alpha": 1.0, "unit": "raw"},
        {"alpha": 1.0, "metric": "raw"},
        {"unit": "normalised"},
        {"where": {"prompt": [0, None]}},
    ],
    ids=str,
)
def test_a_field_the_request_gives_is_its_own(registry: Registry, asked: dict[str, Any]) -> None:
    found = canonical(registry, {"probe": "knob", **LABELS, **asked})
    for name, value in {**CALIBRATED, **asked}.items():
        assert found.get(name, {"unit": "raw", "metric": "raw", "loss": "mean"}.get(name)) == value


@pytest.mark.parametrize("name", ["until", "cap", "fade"])
def test_null_says_none(registry: Registry, name: str) -> None:
    found = canonical(registry, {"probe": "knob", **LABELS, name: None})
    assert name not in found
    assert set(CALIBRATED) - {name} <= set(found)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"unit": "raw"}, "required with unit 'raw': the default edit of probe 'knob' .* unit 'normalised'"),
        ({"metric": "raw"}, "required with metric 'raw': the default edit .* metric 'variance'"),
    ],
    ids=str,
)
def test_a_strength_is_not_read_in_another_measure(
    registry: Registry, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words) as refusal:
        registry.admit({"probe": "knob", **LABELS, **asked})
    assert refusal.value.field == "alpha"


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (
            {"probe": "knob", "avoid": ["cold"]},
            "until.target",
            "no target label .*default edit of probe 'knob'",
        ),
        ({"probe": "knob", "avoid": ["cold"], "until": None}, "loss", "'softmin' needs .*'knob' adds"),
        (
            {"probe": "one side", "target": ["cold"]},
            "until.avoid",
            "no avoid label .*'one side' adds .*until",
        ),
        ({"probe": "knob", **LABELS, "preserve_norm": True}, "preserve_norm", "with cap.*'knob' adds"),
        ({"probe": "unmeasured", **LABELS}, "alpha", "required with unit 'normalised'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_says_where_it_is_from(
    registry: Registry, spec: dict[str, Any], field: str, words: str
) -> None:
    for value, path in ((spec, field), ({"stack": [spec]}, f"stack.0.{field}")):
        with pytest.raises(SpecError, match=words) as refusal:
            registry.admit(value)
        assert refusal.value.field == path


def test_another_method_has_the_other_defaults(registry: Registry) -> None:
    found = canonical(registry, {"probe": "knob", **LABELS, "method": "add"})
    assert (found["alpha"], found["layers"], found["where"]) == (2.0, [1], {"prompt": [0, None]})
    assert not {"unit", "metric", "cap", "fade"} & set(found)


def test_the_default_edits_method_is_the_default(registry: Registry) -> None:
    found = canonical(registry, {"probe": "adds", **LABELS})
    assert (found["method"], found["alpha"], found["unit"]) == ("add", 0.5, "normalised")
    found = canonical(registry, {"probe": "adds", **LABELS, "method": "gradient"})
    assert (found["alpha"], found.get("unit")) == (9.0, None)


def test_compat_takes_nothing_from_it(registry: Registry) -> None:
    found = canonical(registry, {"probe": "knob", **LABELS, "compat": "pip-0.1.2"})
    assert (found["alpha"], found["num_steps"], found["layers"]) == (1.0, 1, [1])
    assert not {"unit", "metric", "cap", "fade", "until", "loss"} & set(found)


def test_presets_and_stacks_are_filled_in_too(registry: Registry) -> None:
    assert canonical(registry, {"preset": "half"})["alpha"] == 0.15
    assert canonical(registry, {"preset": "half", "strength": 2})["alpha"] == 0.6
    admitted = registry.admit({"stack": [{"probe": "knob", **LABELS}, {"probe": "adds", "avoid": ["dry"]}]})
    assert [edit.canonical["alpha"] for edit in admitted.edits] == [0.3, 0.5]
