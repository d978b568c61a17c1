"""Properties of `SteeringSpec` over generated input."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksteer_vllm import SpecError, SteeringSpec
from ksteer_vllm.spec.families import METHODS, fields_of
from ksteer_vllm.spec.fingerprint import fingerprint
from ksteer_vllm.spec.labels import MAX_MAGNITUDE

pytestmark = pytest.mark.pure

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*SteeringSpec.model_fields, "other"])
almost_specs = st.dictionaries(fields, json_values, max_size=9).map(lambda d: {"probe": "p", **d})
almost_specs |= st.builds(dict, stack=st.lists(almost_specs, max_size=2))

labels = st.text(min_size=1, max_size=6)
weights = st.dictionaries(labels, st.floats(1e-3, 1e3) | st.integers(1, 1000), min_size=1, max_size=6)
windows = st.tuples(st.integers(0, 50), st.integers(1, 50)).map(lambda w: [w[0], w[0] + w[1]])
wheres = st.sampled_from(["prompt", "generation", "both"]) | st.builds(
    dict, prompt=windows, generation=st.none() | windows
)


probabilities = st.floats(0.01, 0.99)


def maybe(draw: st.DrawFn, spec: dict[str, Any], **values: st.SearchStrategy[Any]) -> None:
    """Give the spec some of the fields."""
    for name, value in values.items():
        if draw(st.booleans()):
            spec[name] = draw(value)


@st.composite
def good_edits(draw: st.DrawFn) -> dict[str, Any]:
    """A valid edit of any method as plain JSON types."""
    method = draw(st.sampled_from(METHODS))
    takes = fields_of(method)
    spec: dict[str, Any] = {"probe": draw(labels), "method": method, "where": draw(wheres)}
    both = draw(weights)
    cut = draw(st.integers(0, len(both))) if {"target", "avoid"} <= takes else len(both) * ("target" in takes)
    names = list(both)
    if "values" in takes:
        spec["values"] = draw(st.dictionaries(labels, st.floats(-1e3, 1e3) | st.integers(0, 9), min_size=1))
    else:
        spec |= {"target": {name: both[name] for name in names[:cut]}} if cut else {}
        spec |= {"avoid": {name: both[name] for name in names[cut:]}} if cut < len(names) else {}
    if "alpha" in takes:
        spec["alpha"] = draw(st.floats(-MAX_MAGNITUDE, MAX_MAGNITUDE) | st.integers(-5, 5))
        maybe(draw, spec, strength=st.floats(0, 1e3) | st.integers(0, 3))
    if "num_steps" in takes:
        maybe(
            draw,
            spec,
            num_steps=st.integers(1, 300),
            step_decay=st.floats(0, 1) | st.integers(0, 1),
            loss=st.sampled_from(["mean", *(["softmin"] if cut else [])])
            | st.builds(dict, hinge=st.floats(0.51, 0.99)),
        )
        sides = [side for side in ("target", "avoid") if side in spec]
        maybe(draw, spec, until=st.dictionaries(st.sampled_from(sides), probabilities, min_size=1))
    if "unit" in takes:
        maybe(draw, spec, unit=st.sampled_from(["raw", "normalised"]))
    if "metric" in takes:
        maybe(draw, spec, metric=st.sampled_from(["raw", "variance", "covariance"]))
    bounds = [{"preserve_norm": False}, {"cap": 1}, {"cap": 0.25}]
    if spec.get("metric", "raw") == "raw":
        bounds.append({"preserve_norm": True})
    one_bound = st.sampled_from(bounds)
    spec |= draw(st.just({}) | one_bound)
    bound = st.floats(-1, 1) | st.integers(-1, 1)
    maybe(
        draw,
        spec,
        layers=st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True),
        fade=st.integers(1, 1000),
        condition=st.builds(
            lambda name, label, side, bound: {"probe": name, "label": label, side: bound},
            labels,
            labels,
            st.sampled_from(["above", "below"]),
            bound,
        ),
    )
    return spec


@st.composite
def good_specs(draw: st.DrawFn) -> dict[str, Any]:
    """A valid edit, or a stack of some, with or without a report."""
    one = st.one_of(good_edits(), st.builds(dict, stack=st.lists(good_edits(), min_size=1, max_size=3)))
    return {**draw(one), **draw(st.sampled_from([{}, {"report": True}, {"report": False}]))}


def respelt(value: Any, source: random.Random) -> Any:
    """The same spec in other words: fields in another order, whole numbers as integers or floats."""
    if isinstance(value, dict):
        items = [(name, part if name in WHOLE else respelt(part, source)) for name, part in value.items()]
        source.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return [respelt(part, source) for part in value]
    if isinstance(value, float) and value.is_integer() and source.random() < 0.5:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and source.random() < 0.5:
        return float(value)
    return value


WHOLE = ("num_steps", "layers", "fade", "where")
"""Fields that are integers, in which 1.0 is refused."""


def parsed(value: Any) -> tuple[Any, SpecError | None]:
    """(spec, None) or (None, the refusal); any other exception is a failure."""
    try:
        return SteeringSpec.parse(value), None
    except SpecError as error:
        return None, error


@given(json_values | almost_specs)
@settings(max_examples=300)
def test_arbitrary_json_never_raises_anything_but_spec_error(value: Any) -> None:
    for spelling in (value, json.dumps(value)):
        spec, error = parsed(spelling)
        if error is None:
            json.dumps(spec.canonical(), allow_nan=False)
        else:
            assert error.field
            assert str(error).startswith("ksteer")


@given(st.text() | st.binary())
@settings(max_examples=300)
def test_arbitrary_text_never_raises_anything_but_spec_error(value: str | bytes) -> None:
    parsed(value)


@given(good_specs())
@settings(max_examples=150)
def test_canonical_is_idempotent_under_parse_and_json(value: dict[str, Any]) -> None:
    canonical = SteeringSpec.parse(value).canonical()
    again = SteeringSpec.parse(json.loads(json.dumps(canonical))).canonical()
    assert json.dumps(again) == json.dumps(canonical)


@given(good_specs())
@settings(max_examples=100)
def test_canonical_parses_to_an_equal_spec_of_equal_edits(value: dict[str, Any]) -> None:
    """Equal but for the fields at their default, which canonical leaves out."""
    spec = SteeringSpec.parse(value)
    again = SteeringSpec.parse(spec.canonical())
    assert again == spec
    assert [edit.canonical() for edit in again.edits()] == [edit.canonical() for edit in spec.edits()]


@given(good_edits())
@settings(max_examples=100)
def test_weights_sum_to_one_and_keep_their_proportions(value: dict[str, Any]) -> None:
    spec = SteeringSpec.parse(value)
    for side in ("target", "avoid"):
        given_weights, found = value.get(side) or {}, getattr(spec, side)
        assert set(given_weights) == set(found)
        if found:
            assert math.isclose(math.fsum(found.values()), 1.0, rel_tol=1e-12)
            total = math.fsum(given_weights.values())
            assert all(math.isclose(found[k], w / total, rel_tol=1e-9) for k, w in given_weights.items())


@given(good_edits(), wheres, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_the_fingerprint_knows_no_where_no_order_and_no_spelling(
    value: dict[str, Any], where: Any, source: random.Random
) -> None:
    first = SteeringSpec.parse(value).canonical()
    second = SteeringSpec.parse({**respelt(value, source), "where": where, "report": True})
    (edit,) = (edit.canonical() for edit in second.edits())
    assert fingerprint(first, "digest", "condition") == fingerprint(edit, "digest", "condition")
    assert fingerprint(first, "digest") != fingerprint(first, "other digest")
    assert fingerprint(first, "digest", "a") != fingerprint(first, "digest", "b")


@given(st.lists(labels, min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_a_list_and_equal_weights_are_the_same_edit(names: list[str], source: random.Random) -> None:
    def digest(target: Any) -> str:
        return fingerprint(SteeringSpec(probe="p", target=target).canonical(), "digest")

    shuffled = source.sample(names, len(names))
    wanted = digest(names)
    assert digest(shuffled) == wanted
    assert digest(dict.fromkeys(shuffled, 1)) == wanted
    assert digest(dict.fromkeys(shuffled, 1.0)) == wanted


@given(good_edits(), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=150)
def test_positions_lie_inside_the_request_or_are_refused(
    value: dict[str, Any], num_prompt: int, max_tokens: int
) -> None:
    where = SteeringSpec.parse(value).where
    assert where is not None
    if (where.prompt and where.prompt[0] >= num_prompt) or (
        where.generation and where.generation[0] >= max_tokens
    ):
        with pytest.raises(SpecError, match="selects nothing"):
            where.positions(num_prompt, max_tokens)
        return
    first, last, start, end = where.positions(num_prompt, max_tokens)
    assert 0 <= first <= last <= num_prompt
    assert (first < last) == (where.prompt is not None)
    assert start <= end
    if where.generation is not None:
        assert num_prompt - 1 <= start < end
        assert start < num_prompt - 1 + max_tokens
