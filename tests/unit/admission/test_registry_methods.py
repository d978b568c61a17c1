"""Admission with probes of every family: defaults, conditions, stacks, and what each refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import ModelIdentity, ProbeError, SpecError
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import check_fit, resolve_config
from ksteer_vllm.admission.runnable import RunnableEdit
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES
from testbed.families import FAMILY_NAMES, SCALE, random_family_probe, write_probes
from testbed.models import HIDDEN_SIZE, NUM_LAYERS

MODEL = ModelIdentity(name="served", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
GOOD: dict[str, Any] = {"probe": "mlp", "target": ["warm"], "alpha": 1}
PROMPT = {"prompt": [0, None]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family, `control` with tensors at layers 1 and 3, and a few with settings of their own."""
    root = tmp_path_factory.mktemp("probes")
    made = {
        "unscaled": random_family_probe("vectors", activation_scale={}),
        "half scaled": random_family_probe("vectors", activation_scale={1: 2.0}),
        "reading": random_family_probe("vectors", default_where=PROMPT, default_alpha={"add": 0.7}),
        "no ace": random_family_probe("ace", settings={"unavailable": ["ace"]}),
        "nothing": random_family_probe("loreft", settings={"unavailable": ["loreft"]}),
    }
    return write_probes(root) | {name: probe.save(root / name) for name, probe in made.items()}


@pytest.fixture(scope="module")
def registry(folders: dict[str, Path]) -> Registry:
    return registry_of(folders)


def registry_of(folders: dict[str, Path], **options: Any) -> Registry:
    options = {"probes": folders, "layers": "all", "max_probes": 32, "max_steps": 16, **options}
    return Registry.from_config(resolve_config(EngineConfig.parse(options), MODEL))


def only(registry: Registry, spec: Any) -> RunnableEdit:
    (edit,) = registry.admit(spec).edits
    return edit


@pytest.mark.parametrize("family", ["mlp", *FAMILY_NAMES])
def test_the_first_method_of_the_family_is_the_default(registry: Registry, family: str) -> None:
    canonical = only(registry, {"probe": family, "target": ["warm"], "alpha": 2}).canonical
    assert canonical["method"] == next(iter(FAMILIES[family].methods))
    assert canonical["alpha"] == 2.0
    assert canonical["layers"] == [1]


@pytest.mark.parametrize(
    ("spec", "alpha"),
    [
        ({"probe": "ace", "target": ["warm"]}, 1.0),
        ({"probe": "ace", "method": "ablate", "avoid": ["warm"]}, 1.0),
        ({"probe": "loreft", "target": ["warm"]}, 1.0),
        ({"probe": "lorest", "target": ["warm"]}, 1.0),
        ({"probe": "loreft", "target": ["warm"], "alpha": 0}, 0.0),
        ({"probe": "reading", "target": ["warm"]}, 0.7),
        ({"probe": "reading", "target": ["warm"], "alpha": -1}, -1.0),
        ({"probe": "reading", "target": ["warm"], "alpha": 0.1, "unit": "normalised"}, 0.1),
    ],
)
def test_alpha_is_the_requests_or_the_probes_or_the_methods(
    registry: Registry, spec: Any, alpha: float
) -> None:
    assert only(registry, spec).canonical["alpha"] == alpha


def test_values_alone_mean_clamp(registry: Registry) -> None:
    assert only(registry, {"probe": "sae", "values": {"warm": 3}}).canonical["method"] == "clamp"
    assert only(registry, {"probe": "sae", "target": ["warm"], "alpha": 1}).canonical["method"] == "add"


def test_methods_without_an_alpha_have_none(registry: Registry) -> None:
    clamp = only(registry, {"probe": "sae", "method": "clamp", "values": {"warm": 3}})
    assert clamp.canonical == {
        "probe": "sae",
        "method": "clamp",
        "values": {"warm": 3.0},
        "layers": [1],
        "where": {"generation": [0, None]},
    }


def test_where_is_the_requests_or_the_probes_or_generation(registry: Registry) -> None:
    def where(name: str, **fields: Any) -> Any:
        return only(registry, {"probe": name, "target": ["warm"], "alpha": 1, **fields}).canonical["where"]

    assert where("vectors") == {"generation": [0, None]}
    assert where("reading") == {"prompt": [0, None]}
    assert where("reading", where="both") == {"generation": [0, None], "prompt": [0, None]}


def test_a_probe_with_tensors_by_layer_is_used_at_all_of_them(registry: Registry) -> None:
    spec = {"probe": "control", "target": ["warm"], "alpha": 1}
    assert only(registry, spec).canonical["layers"] == [1, 3]
    assert only(registry, {**spec, "layers": [3]}).canonical["layers"] == [3]


def test_a_where_clause_of_a_probe_is_checked_when_it_is_read() -> None:
    for clause in ({"reply": [0, 1]}, {"prompt": [3, 3]}, {}):
        with pytest.raises(ValueError, match="default_where"):
            random_family_probe("vectors", default_where=clause)


def condition(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "condition": {"probe": "mlp", "label": "dry", "above": 0.5, **changes}}


def swapped(bound: float, **changes: Any) -> dict[str, Any]:
    """A condition on below."""
    return condition(above=None, below=bound, **changes)


REFUSALS: list[tuple[dict[str, Any], str, list[str]]] = [
    (condition(probe="toons"), "condition.probe", ["'toons'", "loaded: ", "vectors, linear"]),
    (condition(label="hot"), "condition.label.hot", ["'hot'", "'mlp' has: warm, cold, dry"]),
    (condition(probe="wide"), "condition.label.dry", ["'dry'", "'wide' has: glad, sad, mad"]),
    *(
        (condition(probe=name), "condition.probe", [f"family '{name}'", "takes mlp, linear, vectors"])
        for name in ("ace", "loreft", "lorest", "sae")
    ),
    (condition(above=1), "condition.above", ["probability between 0 and 1", "got 1.0"]),
    (condition(above=0), "condition.above", ["probability between 0 and 1", "got 0.0"]),
    (condition(above=-0.2), "condition.above", ["probability between 0 and 1", "got -0.2"]),
    (swapped(0), "condition.below", ["probability between 0 and 1", "got 0.0"]),
    (swapped(1, probe="linear"), "condition.below", ["probability between 0 and 1", "got 1.0"]),
    (
        {**condition(probe="control"), "layers": [0, 1]}, "condition.probe",
        ["'control'", "no tensors for layer 0"],
    ),
    (
        {**GOOD, "method": "clamp", "target": [], "values": {"warm": 1}, "alpha": None}, "method",
        ["'mlp' (mlp)"],
    ),
    (
        {**GOOD, "method": "ace"}, "method",
        ["'mlp' (mlp) has: gradient, reflect, project, add, random", "'ace'"],
    ),
    (
        {**GOOD, "probe": "vectors", "method": "gradient"}, "method",
        ["(vectors) has: add, random", "'gradient'"],
    ),
    ({**GOOD, "probe": "no ace", "method": "ace"}, "method", ["'no ace' (ace) has: ablate;", "'ace'"]),
    ({**GOOD, "probe": "nothing"}, "method", ["'nothing' (loreft) has: none"]),
    ({**GOOD, "probe": "no ace"}, "target", ["not used by method 'ablate'", "takes avoid only"]),
    ({**GOOD, "probe": "vectors", "num_steps": 3}, "num_steps", ["not used by method 'add'"]),
    ({**GOOD, "probe": "linear", "loss": "softmin"}, "loss", ["not used by method 'gradient'"]),
    ({**GOOD, "probe": "linear", "until": {"target": 0.9}}, "until", ["not used by method 'gradient'"]),
    ({**GOOD, "probe": "loreft", "avoid": ["cold"]}, "avoid", ["'loreft'", "takes target only"]),
    ({**GOOD, "probe": "ace", "unit": "normalised"}, "unit", ["not used by method 'ace'"]),
    (
        {"probe": "vectors", "values": {"warm": 1}}, "values",
        ["not used by method 'add'", "takes target, avoid only"],
    ),
    (
        {"probe": "sae", "method": "clamp", "values": {"hot": 1}}, "values.hot",
        ["'hot'", "'sae' has: warm, cold, dry"],
    ),
    ({"probe": "vectors", "target": ["warm"]}, "alpha", ["required", "'vectors'", "default_alpha", "'add'"]),
    (
        {"probe": "reading", "target": ["warm"], "unit": "normalised"}, "alpha",
        ["required with unit 'normalised'"],
    ),
    (
        {**GOOD, "probe": "unscaled", "unit": "normalised"}, "unit",
        ["'unscaled'", "for layer 1", "it has: none"],
    ),
    (
        {**GOOD, "probe": "half scaled", "unit": "normalised", "layers": [0, 1, 2]}, "unit",
        ["'half scaled'", "for layer 0, 2", "it has: 1"],
    ),
    (
        {**GOOD, "probe": "control", "layers": [2, 3]}, "layers",
        ["'control'", "no tensors for layer 2", "it has: 1, 3"],
    ),
    ({**GOOD, "layers": [7]}, "layers", ["layer 7 is not open", "open: 0, 1, 2, 3"]),
    ({**GOOD, "num_steps": 17}, "num_steps", ["at most max_steps=16", "got 17"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "words"), REFUSALS, ids=str)
def test_refusals_alone_and_in_a_stack(
    registry: Registry, spec: dict[str, Any], field: str, words: list[str]
) -> None:
    for value, path in ((spec, field), ({"stack": [GOOD, spec]}, f"stack.1.{field}")):
        with pytest.raises(SpecError) as refusal:
            registry.admit(value)
        assert refusal.value.field == path
        assert str(refusal.value).startswith(f"ksteer.{path}: ")
        missing = [word for word in words if word not in str(refusal.value)]
        assert not missing, f"{missing} not in: {refusal.value}"


@pytest.mark.parametrize("bound", [-1, -0.3, 0, 1])
def test_a_cosine_may_be_any_number_from_minus_one_to_one(registry: Registry, bound: float) -> None:
    for spec in (condition(probe="vectors", above=bound), swapped(bound, probe="vectors")):
        side = "above" if spec["condition"]["above"] is not None else "below"
        assert only(registry, spec).canonical["condition"][side] == bound


def test_a_conditions_probe_is_part_of_the_fingerprint(folders: dict[str, Path]) -> None:
    registry = registry_of({**folders, "again": folders["mlp"], "other": folders["linear"]})
    prints = {name: only(registry, condition(probe=name)).fingerprint for name in ("mlp", "again", "other")}
    assert prints["mlp"] == prints["again"]
    assert prints["mlp"] != prints["other"]
    assert only(registry, GOOD).fingerprint not in prints.values()


@pytest.mark.parametrize(
    ("spec", "field", "stages"),
    [
        ({"stack": [GOOD, GOOD, GOOD]}, "stack", 3),
        ({"stack": [GOOD, condition()]}, "stack", 3),
        ({"stack": [{**GOOD, "layers": [n], "fade": n + 1} for n in range(3)]}, "stack", 3),
        ({"stack": [condition(), condition()]}, "stack", 4),
    ],
)
def test_more_stages_than_the_engine_has(
    folders: dict[str, Path], registry: Registry, spec: Any, field: str, stages: int
) -> None:
    with pytest.raises(SpecError, match=f"needs {stages} edits in a row .* at most max_stages=2") as refusal:
        registry.admit(spec)
    assert refusal.value.field == field
    assert registry_of(folders, max_stages=stages).admit(spec)


def test_with_one_stage_there_is_no_room_for_a_condition(folders: dict[str, Path]) -> None:
    registry = registry_of(folders, max_stages=1)
    assert registry.admit({"stack": [{**GOOD, "layers": [layer]} for layer in range(4)]})
    with pytest.raises(SpecError, match="at most max_stages=1") as refusal:
        registry.admit(condition())
    assert refusal.value.field == "condition"


def test_every_edit_of_a_stack_is_admitted_for_itself(registry: Registry) -> None:
    stack = [{"probe": "reading", "target": ["warm"]}, {"probe": "control", "target": ["dry"], "alpha": 2}]
    admitted = registry.admit({"stack": stack, "report": True})
    assert [edit.canonical for edit in admitted.edits] == [only(registry, edit).canonical for edit in stack]
    assert [edit.edit for edit in admitted.for_request(4, 4).edits] == [e.canonical for e in admitted.edits]
    assert admitted.report


@pytest.mark.parametrize(
    ("family", "width"), [("vectors", 3), ("loreft", 18), ("lorest", 12), ("sae", 6), ("mlp", 48)]
)
def test_a_probe_must_fit_the_tables(family: str, width: int) -> None:
    """Three labels of rank three: LoReFT holds R and W, LoReST Q and b, a dictionary both its sides."""
    probe: Probe = random_family_probe(family)
    check_fit("it", probe, EngineConfig(max_width=width), MODEL)
    with pytest.raises(ProbeError, match=f"'it' has width {width}; .* at most max_width={width - 1}"):
        check_fit("it", probe, EngineConfig(max_width=width - 1), MODEL)


def test_open_layers_are_those_of_every_probe(folders: dict[str, Path]) -> None:
    config = EngineConfig.parse({"probes": {name: folders[name] for name in ("control", "wide")}})
    assert resolve_config(config, MODEL).layers == (1, 2, 3)
    assert set(SCALE) == {0, 1, 2, 3}
