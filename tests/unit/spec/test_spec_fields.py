"""Every field of an edit but its labels, and stacks of edits: good forms, and how each bad one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ksteer_vllm import SpecError, SteeringSpec
from ksteer_vllm.spec.clauses import Hinge
from ksteer_vllm.spec.edit import Edit

pytestmark = pytest.mark.pure

GOOD: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 1.0}
BOTH: dict[str, Any] = {**GOOD, "avoid": ["cold"]}
CLAMP: dict[str, Any] = {"probe": "features", "method": "clamp", "values": {"rain": 2}}
WHEN: dict[str, Any] = {"probe": "tones", "label": "dry", "above": 0.5}

EDIT_FIELDS = ", ".join(Edit.model_fields)
LOSSES = 'expected mean, softmin or {"hinge": p}'


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ({"loss": "mean"}, {}),
        ({"loss": "softmin"}, {"loss": "softmin"}),
        ({"loss": {"hinge": 0.9}}, {"loss": {"hinge": 0.9}}),
        ({"loss": Hinge(hinge=0.51)}, {"loss": {"hinge": 0.51}}),
        ({"until": None}, {}),
        ({"until": {"target": 0.9}}, {"until": {"target": 0.9}}),
        ({"until": {"avoid": 0.1, "target": None}}, {"until": {"avoid": 0.1}}),
        ({"until": {"target": 0.999, "avoid": 1e-6}}, {"until": {"target": 0.999, "avoid": 1e-6}}),
        ({"unit": "raw"}, {}),
        ({"unit": "normalised"}, {"unit": "normalised"}),
        ({"metric": "raw"}, {}),
        ({"metric": "variance"}, {"metric": "variance"}),
        ({"metric": "covariance", "unit": "normalised"}, {"metric": "covariance", "unit": "normalised"}),
        ({"strength": 1}, {}),
        ({"strength": 0}, {"strength": 0.0}),
        ({"strength": 0.5}, {"strength": 0.5}),
        ({"cap": None}, {}),
        ({"cap": 2}, {"cap": 2.0}),
        ({"cap": 1e-3}, {"cap": 1e-3}),
        ({"preserve_norm": False}, {}),
        ({"preserve_norm": True}, {"preserve_norm": True}),
        ({"fade": None}, {}),
        ({"fade": 1}, {"fade": 1}),
        ({"fade": 2**40}, {"fade": 2**40}),
        ({"condition": None}, {}),
        ({"condition": WHEN}, {"condition": WHEN}),
        ({"condition": {**WHEN, "above": 0}}, {"condition": {**WHEN, "above": 0.0}}),
        (
            {"condition": {"probe": "v", "label": "dry", "below": -0.25, "above": None}},
            {"condition": {"probe": "v", "label": "dry", "below": -0.25}},
        ),
        ({"values": {}}, {}),
        ({"report": False}, {}),
        ({"report": True}, {"report": True}),
    ],
    ids=str,
)
def test_good_forms_and_their_canonical_form(given: dict[str, Any], canonical: dict[str, Any]) -> None:
    plain = SteeringSpec.parse(BOTH).canonical()
    spec = SteeringSpec.parse({**BOTH, **given})
    assert spec.canonical() == {**plain, **canonical}
    assert json.dumps(SteeringSpec.parse(spec.canonical()).canonical()) == json.dumps(spec.canonical())
    for spelling in (spec.extra_args()["ksteer"], spec.model_dump_json()):
        assert SteeringSpec.parse(spelling) == spec


def test_values_are_numbers_as_given() -> None:
    """Activations, not weights: no normalisation; zero and negative ones are meant."""
    values = {"b": 2, "a": 0, "c": -1.5}
    canonical = SteeringSpec.parse({**CLAMP, "values": values}).canonical()
    assert canonical["values"] == {"a": 0.0, "b": 2.0, "c": -1.5}
    assert list(canonical["values"]) == ["a", "b", "c"]
    assert not {"alpha", "num_steps", "step_decay"} & set(canonical)


def test_fields_at_their_default_go_with_every_method() -> None:
    """So that a spec with every field written out means what it says."""
    defaults = {name: field.default for name, field in Edit.model_fields.items() if name != "probe"}
    for method, side in (("reflect", "avoid"), ("add", "target"), ("loreft", "target"), ("ablate", "avoid")):
        fields = {**defaults, "probe": "p", "method": method, side: ["a"]}
        assert SteeringSpec.parse(fields) == SteeringSpec.parse({"probe": "p", "method": method, side: ["a"]})


# (fields, where the fault is, what the message must say: what it got, what is allowed)
BAD: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    ({**GOOD, "loss": "foo"}, "loss", (LOSSES, "'foo'")),
    ({**GOOD, "loss": 3}, "loss", (LOSSES, "3")),
    ({**GOOD, "loss": None}, "loss", (LOSSES, "None")),
    ({**GOOD, "loss": ["mean"]}, "loss", (LOSSES, "['mean']")),
    ({**GOOD, "loss": {}}, "loss.hinge", ("required",)),
    ({**GOOD, "loss": {"hinge": 0.5}}, "loss.hinge", ("greater than 0.5", "got 0.5")),
    ({**GOOD, "loss": {"hinge": 1}}, "loss.hinge", ("less than 1", "got 1")),
    ({**GOOD, "loss": {"hinge": "0.9"}}, "loss.hinge", ("number", "'0.9'")),
    ({**GOOD, "loss": {"margin": 0.9}}, "loss.margin", ("unknown field; allowed: hinge",)),
    ({**GOOD, "loss": {"hinge": 0.9, "margin": 2}}, "loss.margin", ("unknown field; allowed: hinge",)),
    ({"probe": "p", "avoid": ["a"], "loss": "softmin"}, "loss", ("'softmin' needs a target label",)),
    (
        {"probe": "p", "method": "add", "target": ["a"], "loss": "softmin"}, "loss",
        ("not used by method 'add'",),
    ),
    ({**GOOD, "until": 0.9}, "until", ("an object of target, avoid", "0.9")),
    ({**GOOD, "until": {}}, "until", ("give target, avoid or both", "{}")),
    ({**GOOD, "until": {"target": None}}, "until", ("give target, avoid or both",)),
    ({**GOOD, "until": {"target": 1.0}}, "until.target", ("less than 1", "got 1.0")),
    ({**GOOD, "until": {"target": 0}}, "until.target", ("greater than 0", "got 0")),
    ({**GOOD, "until": {"target": float("nan")}}, "until.target", ("nan",)),
    ({**GOOD, "until": {"target": True}}, "until.target", ("number", "True")),
    ({**GOOD, "until": {"avoid": 0.1}}, "until.avoid", ("no avoid label",)),
    ({"probe": "p", "avoid": ["a"], "until": {"target": 0.9}}, "until.target", ("no target label",)),
    ({**GOOD, "until": {"targets": 0.9}}, "until.targets", ("unknown field; allowed: target, avoid",)),
    (
        {"probe": "p", "method": "loreft", "target": ["a"], "until": {"target": 0.9}}, "until",
        ("method 'loreft'",),
    ),
    ({**GOOD, "unit": "sigma"}, "unit", ("'raw' or 'normalised'", "'sigma'")),
    ({**GOOD, "metric": "fisher"}, "metric", ("'raw', 'variance' or 'covariance'", "'fisher'")),
    ({**GOOD, "metric": "variance", "preserve_norm": True}, "preserve_norm", ("metric 'variance'",)),
    *(
        ({"probe": "p", "method": method, side: ["a"], "metric": "variance"}, "metric", (f"'{method}'",))
        for method, side in (("reflect", "avoid"), ("project", "avoid"), ("add", "target"), ("ace", "target"))
    ),
    ({**GOOD, "strength": -0.1}, "strength", ("greater than or equal to 0", "-0.1")),
    ({**GOOD, "strength": float("inf")}, "strength", ("finite",)),
    ({**GOOD, "strength": "half"}, "strength", ("number", "'half'")),
    ({**GOOD, "strength": None}, "strength", ("number", "None")),
    ({"probe": "p", "method": "reflect", "avoid": ["a"], "strength": 2}, "strength", ("method 'reflect'",)),
    ({**CLAMP, "strength": 2}, "strength", ("method 'clamp'",)),
    ({**GOOD, "unit": None}, "unit", ("'raw' or 'normalised'", "None")),
    ({"probe": "p", "method": "ace", "target": ["a"], "unit": "normalised"}, "unit", ("method 'ace'",)),
    ({**GOOD, "cap": 0}, "cap", ("greater than 0", "got 0")),
    ({**GOOD, "cap": -0.1}, "cap", ("greater than 0", "-0.1")),
    ({**GOOD, "cap": 2e6}, "cap", ("less than or equal to 1000000", "2000000.0")),
    ({**GOOD, "cap": float("inf")}, "cap", ("inf",)),
    ({**GOOD, "cap": float("nan")}, "cap", ("nan",)),
    ({**GOOD, "cap": "0.1"}, "cap", ("number", "'0.1'")),
    ({**GOOD, "cap": True}, "cap", ("number", "True")),
    ({**GOOD, "preserve_norm": 1}, "preserve_norm", ("boolean", "1")),
    ({**GOOD, "preserve_norm": "yes"}, "preserve_norm", ("boolean", "'yes'")),
    ({**GOOD, "preserve_norm": None}, "preserve_norm", ("boolean", "None")),
    ({**GOOD, "preserve_norm": True, "cap": 0.1}, "preserve_norm", ("cannot be combined with cap",)),
    ({**GOOD, "fade": 0}, "fade", ("greater than or equal to 1", "got 0")),
    ({**GOOD, "fade": 2**40 + 1}, "fade", ("less than or equal to 1099511627776",)),
    ({**GOOD, "fade": 2.5}, "fade", ("integer", "2.5")),
    ({**GOOD, "fade": True}, "fade", ("integer", "True")),
    ({**GOOD, "values": {"warm": 1}, "method": "gradient"}, "values", ("not used by method 'gradient'",)),
    ({**CLAMP, "values": None}, "values", ("'clamp' needs at least one label in values",)),
    ({**CLAMP, "values": {}}, "values", ("'clamp' needs at least one label in values",)),
    ({**CLAMP, "values": ["rain"]}, "values", ("object of label -> activation", "['rain']")),
    ({**CLAMP, "values": {"rain": "2"}}, "values", ("'rain'", "number", "str")),
    ({**CLAMP, "values": {"rain": True}}, "values", ("'rain'", "number", "bool")),
    ({**CLAMP, "values": {"rain": float("nan")}}, "values", ("'rain'", "finite", "nan")),
    ({**CLAMP, "values": {"rain": -2e12}}, "values", ("'rain'", "at most 1e+12", "-2000000000000.0")),
    ({**CLAMP, "values": {"rain": 10**400}}, "values", ("'rain'", "finite", "inf")),
    ({**CLAMP, "values": {str(n): 1 for n in range(1025)}}, "values", ("at most 1024", "1025")),
    ({**CLAMP, "alpha": 2.0}, "alpha", ("not used by method 'clamp'",)),
    ({**CLAMP, "avoid": ["sun"]}, "avoid", ("not used by method 'clamp'", "takes values only")),
    ({**GOOD, "condition": 0.5}, "condition", ("an object of probe, label, above, below", "0.5")),
    ({**GOOD, "condition": {}}, "condition.probe", ("required",)),
    ({**GOOD, "condition": {"probe": "p", "above": 0}}, "condition.label", ("required",)),
    ({**GOOD, "condition": {"probe": "p", "label": "a"}}, "condition", ("give either above or below",)),
    ({**GOOD, "condition": {**WHEN, "below": 0.1}}, "condition", ("give either above or below",)),
    ({**GOOD, "condition": {**WHEN, "above": 1.5}}, "condition.above", ("less than or equal to 1", "1.5")),
    ({**GOOD, "condition": {**WHEN, "above": -2}}, "condition.above", ("greater than or equal to -1", "-2")),
    ({**GOOD, "condition": {**WHEN, "above": "x"}}, "condition.above", ("number", "'x'")),
    ({**GOOD, "condition": {**WHEN, "probe": ""}}, "condition.probe", ("at least 1 character",)),
    ({**GOOD, "condition": {**WHEN, "label": 3}}, "condition.label", ("string", "3")),
    (
        {**GOOD, "condition": {**WHEN, "over": 1}},
        "condition.over",
        ("unknown field; allowed: probe, label, above, below",),
    ),
    ({**GOOD, "report": 1}, "report", ("boolean", "1")),
    ({**GOOD, "report": None}, "report", ("boolean", "None")),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "words"), BAD, ids=str)
def test_bad_forms_name_the_field_what_it_got_and_what_is_allowed(
    fields: dict[str, Any], field: str, words: tuple[str, ...]
) -> None:
    """Alone, as JSON, and in a stack, where the path leads through it."""
    for value, path in (
        (fields, field),
        (json.dumps(fields), field),
        ({"stack": [GOOD, fields]}, f"stack.1.{field}"),
    ):
        if path == "stack.1.report":
            continue  # below: no field of an edit
        with pytest.raises(SpecError) as refusal:
            SteeringSpec.parse(value)
        assert refusal.value.field == path
        assert str(refusal.value).startswith(f"ksteer.{path}: ")
        missing = [word for word in words if word not in str(refusal.value)]
        assert not missing, f"{missing} not in: {refusal.value}"
        assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ({"stack": 3}, "stack", ("valid list", "3")),
        ({"stack": {"0": GOOD}}, "stack", ("valid list",)),
        ({"stack": []}, "stack", ("1 to 1024 edits", "got 0")),
        ({"stack": [GOOD] * 1025}, "stack", ("1 to 1024 edits", "got 1025")),
        ({"stack": None}, "probe", ("required",)),
        ({"stack": [3]}, "stack.0", (f"an object of {EDIT_FIELDS}", "3")),
        ({"stack": ["{}"]}, "stack.0", (f"an object of {EDIT_FIELDS}", "'{}'")),
        ({"stack": [GOOD, {"target": ["a"]}]}, "stack.1.probe", ("required",)),
        ({"stack": [GOOD, {"probe": "p"}]}, "stack.1.target", ("at least one label",)),
        (
            {"stack": [{**GOOD, "force": 1}]}, "stack.0.force",
            (f"unknown field; allowed: {EDIT_FIELDS}",),
        ),
        (
            {"stack": [{**GOOD, "report": True}]}, "stack.0.report",
            (f"unknown field; allowed: {EDIT_FIELDS}",),
        ),
        ({"stack": [{"stack": [GOOD]}]}, "stack.0.stack", (f"unknown field; allowed: {EDIT_FIELDS}",)),
        (
            {"stack": [GOOD, {**GOOD, "where": {"reply": [0, 1]}}]}, "stack.1.where.reply",
            ("prompt, generation",),
        ),
        ({"stack": [{**GOOD, "where": "reply"}]}, "stack.0.where", ("prompt, generation, both", "'reply'")),
        ({"stack": [{**GOOD, "target": {"warm": -1}}]}, "stack.0.target", ("'warm'", "> 0", "-1")),
        ({"stack": [GOOD], "alpha": 2}, "alpha", ("not allowed beside stack",)),
        ({"stack": [GOOD], "where": "both"}, "where", ("not allowed beside stack",)),
        ({**GOOD, "stack": [GOOD]}, "probe", ("not allowed beside stack",)),
        ({"stack": [GOOD], "strength": 2}, "strength", ("not allowed beside stack",)),
        ({"stack": [GOOD], "force": 2}, "force", (f"allowed: {EDIT_FIELDS}, stack, report",)),
        ({"stack": [GOOD], "report": "yes"}, "report", ("boolean", "'yes'")),
    ],
    ids=str,
)  # fmt: skip
def test_bad_stacks(value: Any, field: str, words: tuple[str, ...]) -> None:
    for spelling in (value, json.dumps(value)):
        with pytest.raises(SpecError) as refusal:
            SteeringSpec.parse(spelling)
        assert refusal.value.field == field
        missing = [word for word in words if word not in str(refusal.value)]
        assert not missing, f"{missing} not in: {refusal.value}"


def test_a_stack_keeps_its_order_and_every_edit_its_fields() -> None:
    edits = [{**GOOD, "fade": 3}, CLAMP, {**BOTH, "where": "both", "condition": WHEN}]
    spec = SteeringSpec.parse({"stack": edits, "report": True})
    alone = [SteeringSpec.parse(edit) for edit in edits]
    assert [edit.canonical() for edit in spec.edits()] == [edit.canonical() for edit in alone]
    assert spec.canonical() == {"stack": [edit.canonical() for edit in alone], "report": True}
    for spelling in (spec.canonical(), spec.extra_args()["ksteer"], spec.model_dump_json()):
        assert SteeringSpec.parse(spelling) == spec
    assert [edit.probe for edit in alone[1].edits()] == ["features"]
    assert not hasattr(alone[0].edits()[0], "report")


def test_specs_in_a_stack_are_edits() -> None:
    spec = SteeringSpec(stack=[SteeringSpec(**GOOD), CLAMP])  # type: ignore[arg-type]
    assert spec == SteeringSpec.parse({"stack": [GOOD, CLAMP]})
    for nested, field in ((spec, "stack.0.stack"), (SteeringSpec(**GOOD, report=True), "stack.0.report")):
        with pytest.raises(SpecError) as refusal:
            SteeringSpec.parse({"stack": [nested]})
        assert refusal.value.field == field
