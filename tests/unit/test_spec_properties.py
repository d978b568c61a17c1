"""Properties of `SteeringSpec` over generated input."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksteer_vllm import SpecError, SteeringSpec
from ksteer_vllm.fingerprint import fingerprint
from ksteer_vllm.spec import MAX_ALPHA

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*SteeringSpec.model_fields, "other"])
almost_specs = st.dictionaries(fields, json_values, max_size=9).map(lambda d: {"probe": "p", **d})

labels = st.text(min_size=1, max_size=6)
weights = st.dictionaries(labels, st.floats(1e-3, 1e3) | st.integers(1, 1000), min_size=1, max_size=6)
windows = st.tuples(st.integers(0, 50), st.integers(1, 50)).map(lambda w: [w[0], w[0] + w[1]])
wheres = st.sampled_from(["prompt", "generation", "both"]) | st.builds(
    dict, prompt=windows, generation=st.none() | windows
)


@st.composite
def good_specs(draw: st.DrawFn) -> dict[str, Any]:
    """A valid spec of any method as plain JSON types."""
    method = draw(st.sampled_from(["gradient", "reflect", "project", "add"]))
    spec: dict[str, Any] = {"probe": draw(labels), "method": method, "where": draw(wheres)}
    both = draw(weights)
    cut = draw(st.integers(0, len(both)))
    names = list(both)
    if method in ("reflect", "project"):
        spec["avoid"] = both
    else:
        spec["target"] = {name: both[name] for name in names[:cut]}
        spec["avoid"] = {name: both[name] for name in names[cut:]}
        spec["alpha"] = draw(st.floats(-MAX_ALPHA, MAX_ALPHA) | st.integers(-5, 5))
    if method == "gradient":
        spec["num_steps"] = draw(st.integers(1, 300))
        spec["step_decay"] = draw(st.floats(0, 1) | st.integers(0, 1))
    if draw(st.booleans()):
        spec["layers"] = draw(st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True))
    return spec


def parsed(value: Any) -> tuple[Any, SpecError | None]:
    """(spec, None) or (None, the refusal); any other exception is a failure."""
    try:
        return SteeringSpec.parse(value), None
    except SpecError as error:
        return None, error


@given(json_values | almost_specs)
@settings(deadline=None, max_examples=500)
def test_arbitrary_json_never_raises_anything_but_spec_error(value: Any) -> None:
    for spelling in (value, json.dumps(value)):
        spec, error = parsed(spelling)
        if error is None:
            json.dumps(spec.canonical(), allow_nan=False)
        else:
            assert error.field
            assert str(error).startswith("ksteer")


@given(st.text() | st.binary())
@settings(deadline=None, max_examples=300)
def test_arbitrary_text_never_raises_anything_but_spec_error(value: str | bytes) -> None:
    parsed(value)


@given(good_specs())
@settings(deadline=None, max_examples=300)
def test_canonical_is_idempotent_under_parse_and_json(value: dict[str, Any]) -> None:
    canonical = SteeringSpec.parse(value).canonical()
    again = SteeringSpec.parse(json.loads(json.dumps(canonical))).canonical()
    assert json.dumps(again) == json.dumps(canonical)


@given(good_specs())
@settings(deadline=None, max_examples=300)
def test_weights_sum_to_one_and_keep_their_proportions(value: dict[str, Any]) -> None:
    spec = SteeringSpec.parse(value)
    for side in ("target", "avoid"):
        given_weights, found = value.get(side) or {}, getattr(spec, side)
        assert set(given_weights) == set(found)
        if found:
            assert math.isclose(math.fsum(found.values()), 1.0, rel_tol=1e-12)
            total = math.fsum(given_weights.values())
            assert all(math.isclose(found[k], w / total, rel_tol=1e-9) for k, w in given_weights.items())


@given(good_specs(), wheres, st.randoms())
@settings(deadline=None, max_examples=300)
def test_the_fingerprint_knows_no_where_and_no_order(value: dict[str, Any], where: Any, source: Any) -> None:
    def shuffled(fields_of: dict[str, Any]) -> dict[str, Any]:
        items = list(fields_of.items())
        source.shuffle(items)
        return {k: shuffled(v) if isinstance(v, dict) else v for k, v in items}

    first = SteeringSpec.parse(value).canonical()
    second = SteeringSpec.parse({**shuffled(value), "where": where}).canonical()
    assert fingerprint(first, "digest") == fingerprint(second, "digest")
    assert fingerprint(first, "digest") != fingerprint(first, "other digest")


@given(good_specs(), st.integers(1, 300), st.integers(1, 300))
@settings(deadline=None, max_examples=300)
def test_positions_lie_inside_the_request_or_are_refused(
    value: dict[str, Any], num_prompt: int, max_tokens: int
) -> None:
    where = SteeringSpec.parse(value).where
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
