"""`SteeringSpec`: what is accepted, what it means, and how it is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ksteer_vllm import SpecError, SteeringSpec, Where
from ksteer_vllm.spec.labels import MAX_MAGNITUDE
from ksteer_vllm.spec.where import NO_END

pytestmark = pytest.mark.pure

GOOD: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 1.0}


def test_a_list_is_the_mean() -> None:
    spec = SteeringSpec(probe="p", target=["a", "b"], avoid=["c"], alpha=1)
    assert spec.target == {"a": 0.5, "b": 0.5}
    assert spec.avoid == {"c": 1.0}


def test_weights_are_normalised_within_their_side() -> None:
    spec = SteeringSpec(probe="p", target={"a": 3, "b": 1}, avoid={"c": 5}, alpha=1)
    assert spec.target == {"a": 0.75, "b": 0.25}
    assert spec.avoid == {"c": 1.0}


def test_defaults() -> None:
    spec = SteeringSpec(probe="p", target=["a"])
    assert (spec.num_steps, spec.step_decay, spec.loss, spec.unit) == (8, 1.0, "mean", "raw")
    assert (spec.preserve_norm, spec.report, spec.values) == (False, False, {})
    left_to_the_probe = (spec.method, spec.alpha, spec.layers, spec.where)
    assert (*left_to_the_probe, spec.until, spec.cap, spec.fade, spec.condition, spec.stack) == (None,) * 9


@pytest.mark.parametrize(
    ("where", "windows"),
    [
        ("prompt", ((0, None), None)),
        ("generation", (None, (0, None))),
        ("both", ((0, None), (0, None))),
        ({"prompt": True}, ((0, None), None)),
        ({"prompt": "all", "generation": False}, ((0, None), None)),
        ({"prompt": [2, 5], "generation": [1, None]}, ((2, 5), (1, None))),
        ({"generation": (0, 3)}, (None, (0, 3))),
    ],
)
def test_where(where: Any, windows: Any) -> None:
    spec = SteeringSpec.parse({**GOOD, "where": where})
    assert spec.where is not None
    assert (spec.where.prompt, spec.where.generation) == windows


def clause(where: Any) -> Where:
    parsed = SteeringSpec.parse({**GOOD, "where": where}).where
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("where", "positions"),
    [
        ("prompt", (0, 10, 0, 0)),
        ("generation", (0, 0, 9, NO_END)),
        ("both", (0, 10, 9, NO_END)),
        ({"prompt": [2, 5]}, (2, 5, 0, 0)),
        ({"prompt": [9, 99]}, (9, 10, 0, 0)),
        ({"generation": [0, 1]}, (0, 0, 9, 10)),
        ({"generation": [3, 7]}, (0, 0, 12, 16)),
        ({"prompt": [0, 1], "generation": [2, None]}, (0, 1, 11, NO_END)),
    ],
)
def test_positions_are_absolute(where: Any, positions: tuple[int, ...]) -> None:
    """P = 10: prompt index i is position i, generation index j is position P - 1 + j."""
    assert clause(where).positions(10, 20) == positions


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ({"prompt": [10, None]}, "where.prompt"),
        ({"prompt": [10, 12], "generation": [0, 1]}, "where.prompt"),
        ({"generation": [20, None]}, "where.generation"),
        ({"generation": [25, 30]}, "where.generation"),
    ],
)
def test_a_window_beyond_the_request_selects_nothing(where: Any, field: str) -> None:
    with pytest.raises(SpecError, match="selects nothing") as refusal:
        clause(where).positions(10, 20)
    assert refusal.value.field == field


def test_the_last_window_of_a_request_is_accepted() -> None:
    where = Where(prompt=(9, 10), generation=(19, None))
    assert where.positions(10, 20) == (9, 10, 28, NO_END)
    assert where.positions(10, None) == (9, 10, 28, NO_END)


def test_spellings_parse_alike() -> None:
    spec = SteeringSpec(**GOOD)
    text = json.dumps(GOOD)
    for value in (spec, GOOD, text, text.encode(), spec.canonical(), spec.extra_args()["ksteer"]):
        assert SteeringSpec.parse(value) == spec
    assert SteeringSpec.parse(spec.model_dump_json()) == spec, "every field written out"


def test_canonical_is_the_same_for_equal_requests() -> None:
    one = SteeringSpec(probe="p", target={"b": 2, "a": 2}, alpha=1, layers=[3, 1], step_decay=1)
    two = SteeringSpec(probe="p", target=["a", "b"], alpha=1.0, layers=[1, 3], num_steps=8, avoid=[])
    assert json.dumps(one.canonical()) == json.dumps(two.canonical())


def test_canonical_leaves_out_what_a_method_does_not_use() -> None:
    reflect = SteeringSpec(probe="p", avoid=["a"], method="reflect", layers=[1])
    assert reflect.canonical() == {
        "probe": "p",
        "avoid": {"a": 1.0},
        "method": "reflect",
        "layers": [1],
    }
    assert not {"num_steps", "step_decay"} & set(
        SteeringSpec(probe="p", target=["a"], method="add", alpha=2).canonical()
    )


def test_extra_args_are_plain_json_and_merge() -> None:
    spec = SteeringSpec(probe="p", target=["a"], where="both", layers=[2])
    extra = spec.extra_args({"theirs": 1})
    assert json.loads(json.dumps(extra)) == extra
    assert set(extra) == {"theirs", "ksteer"}
    assert "alpha" not in extra["ksteer"], "left to the probe's default"
    assert SteeringSpec.parse(extra["ksteer"]) == spec


def test_a_spec_cannot_be_changed_after_its_validation() -> None:
    spec = SteeringSpec(**GOOD)
    with pytest.raises(ValidationError):
        spec.alpha = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "ksteer"),
        (b"\xff", "ksteer"),
        ("", "ksteer"),
        ({}, "probe"),
        ({1: 2}, "1"),
        ({**GOOD, "probe": ""}, "probe"),
        ({**GOOD, "probe": 3}, "probe"),
        ({**GOOD, "alpha": "NaN"}, "alpha"),
        ('{"probe": "p", "target": ["a"], "alpha": NaN}', "alpha"),
        ('{"probe": "p", "target": ["a"], "alpha": 1e999}', "alpha"),
        ({**GOOD, "alpha": 2 * MAX_MAGNITUDE}, "alpha"),
        ({**GOOD, "step_decay": float("nan")}, "step_decay"),
        ({**GOOD, "target": {"warm": 1e308, "cold": 1e308}}, "target"),
        ({**GOOD, "target": {"warm": 5e-324, "cold": 1e308}}, "target"),
        ({**GOOD, "layers": [True]}, "layers.0"),
        ({**GOOD, "layers": 3}, "layers"),
        ({**GOOD, "where": 3}, "where"),
        ({**GOOD, "where": {"prompt": [0, 1.5]}}, "where.prompt.1"),
        ("[" * 100_000, "ksteer"),
    ],
    ids=str,
)
def test_refusals_name_the_field(value: Any, field: str) -> None:
    with pytest.raises(SpecError) as refusal:
        SteeringSpec.parse(value)
    assert refusal.value.field == field
    assert str(refusal.value).startswith("ksteer")
    assert len(str(refusal.value)) < 1000
