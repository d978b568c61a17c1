"""What one engine can steer with: probes, layers, limits."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from ksteer_vllm import ModelIdentity, ProbeError, SpecError, SteeringSpec
from ksteer_vllm.admission.registry import MAX_KNOWN_SPECS, Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.admission.runnable import RunnableEdit
from ksteer_vllm.config import EngineConfig, ResolvedConfig
from ksteer_vllm.spec.where import NO_END
from testbed.models import HIDDEN_SIZE, NUM_LAYERS
from testbed.probes import random_probe

MODEL = ModelIdentity(name="served", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
GOOD: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 1}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    random_probe(layer=1, default_alpha={"gradient": 3.0}).save(tmp_path / "tones")
    random_probe(layer=3, labels=("glad", "sad"), default_alpha={"add": 0.5}).save(tmp_path / "moods")
    return {name: str(tmp_path / name) for name in ("tones", "moods")}


@pytest.fixture
def registry(folders: dict[str, str]) -> Registry:
    config = EngineConfig.parse({"probes": folders, "max_steps": 16})
    return Registry.from_config(resolve_config(config, MODEL))


def test_open_layers(folders: dict[str, str]) -> None:
    def opened(layers: Any) -> Any:
        return resolve_config(EngineConfig.parse({"probes": folders, "layers": layers}), MODEL).layers

    assert opened("probe") == (1, 3)
    assert opened("all") == (0, 1, 2, 3)
    assert opened([2, 0]) == (0, 2)


def test_a_resolved_configuration_is_complete_and_stays_as_it_is(folders: dict[str, str]) -> None:
    resolved = resolve_config(EngineConfig.parse({"probes": folders}), MODEL)
    assert all(len(source.digest) == 64 for source in resolved.probes.values())
    assert ResolvedConfig.recognises(resolved.as_json())
    assert ResolvedConfig.parse(resolved.as_json()) == resolved


def only(registry: Registry, spec: Any) -> RunnableEdit:
    """The one edit of a spec."""
    (edit,) = registry.admit(spec).edits
    return edit


def test_defaults_come_from_the_probe(registry: Registry) -> None:
    admitted = only(registry, {"probe": "tones", "target": ["warm"]})
    assert admitted.canonical == {
        "probe": "tones",
        "method": "gradient",
        "target": {"warm": 1.0},
        "alpha": 3.0,
        "num_steps": 8,
        "step_decay": 1.0,
        "layers": [1],
        "where": {"generation": [0, None]},
    }
    explicit = {"probe": "tones", "target": {"warm": 2}, "alpha": 3, "layers": [1], "method": "gradient"}
    assert only(registry, {**explicit, "where": "generation"}).fingerprint == admitted.fingerprint
    assert only(registry, {"probe": "moods", "target": ["glad"], "method": "add"}).canonical["alpha"] == 0.5


def test_an_admitted_spec_is_plain_json_of_one_shape(registry: Registry) -> None:
    """One edit, a stack of one, and a SteeringSpec: the same record on the wire."""
    forms = [
        GOOD,
        {"stack": [GOOD]},
        SteeringSpec(**GOOD),
        SteeringSpec(stack=[GOOD]),
        SteeringSpec(stack=[SteeringSpec(**GOOD)]),
    ]
    admitted = [registry.admit(form) for form in forms]
    (wire,) = {json.dumps(one.for_request(10, 20).to_wire()) for one in admitted}
    for one in admitted:
        (edit,) = one.edits
        assert edit.digest == registry.probes[GOOD["probe"]].digest
        assert json.loads(wire) == {
            "edits": [
                {
                    "edit": edit.canonical,
                    "fingerprint": edit.fingerprint,
                    "digest": edit.digest,
                    "windows": [0, 0, 9, NO_END],
                }
            ],
            "report": False,
            "sampled": False,
        }


def test_records_have_a_fade_where_the_edit_fades(registry: Registry) -> None:
    admitted = registry.admit({"stack": [{**GOOD, "fade": 5}, {**GOOD, "layers": [3], "where": "both"}]})
    fading, steady = admitted.for_request(10, None).edits
    assert fading.fade == (9, 5)
    assert steady.fade is None
    assert "fade" not in steady.to_wire()
    assert steady.windows == (0, 10, 9, NO_END)


@pytest.mark.parametrize("window", [{"prompt": [10, None]}, {"generation": [20, 21]}])
def test_a_window_beyond_the_request_is_refused_by_its_path(registry: Registry, window: Any) -> None:
    beyond, (side,) = {**GOOD, "where": window}, window
    for spec, path in (
        (beyond, ""),
        ({"stack": [GOOD, beyond]}, "stack.1."),
        ({"stack": [beyond]}, "stack.0."),
    ):
        with pytest.raises(SpecError, match="selects nothing") as refusal:
            registry.admit(spec).for_request(10, 20)
        assert refusal.value.field == f"{path}where.{side}"


def test_a_report_is_no_part_of_the_edit(registry: Registry) -> None:
    plain, reporting = registry.admit(GOOD), registry.admit({**GOOD, "report": True})
    assert (plain.report, reporting.report) == (False, True)
    assert plain.for_request(4, 4).edits == reporting.for_request(4, 4).edits


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"probe": "moods", "target": ["glad"]}, ["ksteer.alpha", "required", "'moods'", "'gradient'"]),
        ({"probe": "tones", "target": ["warm"], "method": "add"}, ["ksteer.alpha", "required", "'add'"]),
        ({**GOOD, "probe": "none"}, ["ksteer.probe", "'none'", "tones, moods"]),
        ({**GOOD, "target": ["glad"]}, ["ksteer.target", "'glad'", "warm, cold, dry"]),
        ({**GOOD, "avoid": ["x", "y"]}, ["ksteer.avoid", "'x', 'y'", "warm, cold, dry"]),
        ({**GOOD, "layers": [0, 1]}, ["ksteer.layers", "layer 0", "1, 3"]),
        ({**GOOD, "num_steps": 17}, ["ksteer.num_steps", "16", "17"]),
    ],
    ids=str,
)
def test_refusals(registry: Registry, spec: dict[str, Any], words: list[str]) -> None:
    for spelling in (spec, SteeringSpec.parse(spec)):
        with pytest.raises(SpecError) as refusal:
            registry.admit(spelling)
        assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize("value", [10**5000, 1j, {"a"}, b"a", object()], ids=type)
def test_what_json_cannot_say_does_not_hide_the_rest_from_the_limit(registry: Registry, value: Any) -> None:
    """Offline alone; a value without a size would leave the whole mapping without one."""
    spec = {**GOOD, "target": ["warm"] * 100_000, "alpha": value}
    for wanted in (spec, {**GOOD, "alpha": value}):
        with pytest.raises(SpecError) as refusal:
            registry.admit(wanted)
        assert refusal.value.field == "ksteer"


def test_what_the_parser_takes_beside_json_has_a_size(registry: Registry) -> None:
    plain = only(registry, GOOD).fingerprint
    for fields in (
        {"alpha": Fraction(1)},
        {"layers": range(1, 2)},
        {"target": MappingProxyType({"warm": 1})},
    ):
        assert only(registry, MappingProxyType({**GOOD, **fields})).fingerprint == plain
    with pytest.raises(SpecError, match="max_spec_bytes"):
        registry.admit({**GOOD, "alpha": Fraction(1), "layers": range(10**5)})


def test_reflect_needs_no_alpha(registry: Registry) -> None:
    canonical = only(registry, {"probe": "moods", "avoid": ["sad"], "method": "reflect"}).canonical
    assert canonical["layers"] == [3]
    assert "alpha" not in canonical


def test_one_probe_may_steer_several_open_layers(registry: Registry) -> None:
    assert only(registry, {**GOOD, "layers": [3, 1]}).canonical["layers"] == [1, 3]


def test_fingerprints_tell_probes_with_equal_labels_apart(folders: dict[str, str], tmp_path: Path) -> None:
    random_probe(layer=1, seed=4).save(tmp_path / "other")
    config = EngineConfig.parse({"probes": {**folders, "other": str(tmp_path / "other")}})
    registry = Registry.from_config(resolve_config(config, MODEL))
    tones, other = (only(registry, {**GOOD, "probe": name}).fingerprint for name in ("tones", "other"))
    assert tones != other


def test_one_folder_under_two_names_is_the_same_edit(folders: dict[str, str]) -> None:
    config = EngineConfig.parse({"probes": {**folders, "again": folders["tones"]}})
    registry = Registry.from_config(resolve_config(config, MODEL))
    tones, again = (only(registry, {**GOOD, "probe": name}).fingerprint for name in ("tones", "again"))
    assert tones == again


def test_a_probe_folder_that_changed_since(folders: dict[str, str]) -> None:
    resolved = resolve_config(EngineConfig.parse({"probes": folders}), MODEL)
    random_probe(layer=1, seed=8).save(folders["tones"])
    with pytest.raises(ProbeError, match=r"'tones'.* has changed"):
        Registry.from_config(resolved)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 128), ("model_type", "gemma2"), ("num_layers", 6)]
)
def test_a_probe_of_another_model(folders: dict[str, str], field: str, value: Any) -> None:
    other = MODEL.model_copy(update={field: value})
    with pytest.raises(ProbeError, match=f"'tones' was fitted on 'tiny' with {field} .* has {value}"):
        resolve_config(EngineConfig.parse({"probes": folders}), other)


def test_the_name_of_a_model_may_differ(folders: dict[str, str]) -> None:
    renamed = MODEL.model_copy(update={"name": "somewhere/else"})
    assert resolve_config(EngineConfig.parse({"probes": folders}), renamed).probes


def test_the_same_spec_is_checked_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    first = registry.admit(GOOD)
    monkeypatch.setattr(registry, "_admit", lambda value: pytest.fail(f"checked again: {value}"))
    assert registry.admit(dict(GOOD)) is first
    assert registry.admit(json.dumps(GOOD, separators=(",", ":"))) is first


def test_only_so_many_specs_are_remembered(registry: Registry) -> None:
    for alpha in range(2 * MAX_KNOWN_SPECS):
        registry.admit({**GOOD, "alpha": alpha})
        assert len(registry._known) <= MAX_KNOWN_SPECS


def test_a_refused_spec_is_refused_again(registry: Registry) -> None:
    for _ in range(2):
        with pytest.raises(SpecError, match="no probe named"):
            registry.admit({**GOOD, "probe": "absent"})


def test_what_is_no_json_type_is_checked_each_time(registry: Registry) -> None:
    """A number of another library may look the same in JSON and yet be refused by its field."""
    registry.admit({**GOOD, "target": {"warm": 1.5}})
    with pytest.raises(SpecError, match="must be a number, got float32"):
        registry.admit({**GOOD, "target": {"warm": np.float32(1.5)}})
