"""What a request that names a preset asks for, and reading a file of presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksteer_vllm.config import EngineConfig
from ksteer_vllm.errors import ConfigError, SpecError
from ksteer_vllm.spec.model import EXAMPLE
from ksteer_vllm.spec.presets import check_name, expand, is_opt_out, read_presets, with_model_preset

pytestmark = pytest.mark.pure

WARM = {"probe": "tones", "target": ["warm"], "alpha": 3.0}
STACK = {"stack": [WARM, {"probe": "tones", "avoid": ["dry"], "method": "project"}]}
PRESETS: dict[str, Any] = {"warm": WARM, "two": STACK}

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(lambda name: name != "none")
FIELDS = st.dictionaries(
    st.sampled_from(["probe", "target", "alpha", "num_steps", "where", "report", "odd"]),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    max_size=4,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["preset", "stack", "alpha", "x"]) | st.text(max_size=4), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(name=NAMES, preset=FIELDS, overrides=FIELDS)
def test_fields_replace_the_presets(name: str, preset: dict[str, Any], overrides: dict[str, Any]) -> None:
    before = dict(preset)
    asked = {"preset": name, **overrides}
    for value in (asked, json.dumps(asked), json.dumps(asked).encode()):
        assert expand(value, {name: preset}) == {**preset, **overrides}
    assert preset == before
    assert with_model_preset(overrides, name) == asked
    assert with_model_preset(asked, name) == asked


@given(value=JSON)
def test_whatever_is_sent_gives_a_spec_an_opt_out_or_a_refusal(value: Any) -> None:
    text = json.dumps(value)
    results = []
    for sent in (value, text) if not isinstance(value, str) else (text,):
        try:
            results.append(repr(expand(sent, PRESETS)))
        except SpecError as error:
            results.append(str(error))
        if is_opt_out(sent):
            assert sent is value or sent is text
            assert value is False or value.get("preset") == "none"
    assert len(set(results)) == 1
    if results == ["None"]:
        assert is_opt_out(text)


@given(name=st.text(max_size=70))
def test_the_name_rule(name: str) -> None:
    good = (
        1 <= len(name) <= 64
        and name.isascii()
        and name[0].isalnum()
        and all(character.isalnum() or character in "._-" for character in name)
        and name != "none"
    )
    if good:
        assert check_name(name) == name
    else:
        with pytest.raises(SpecError, match=r"^ksteer\.preset: "):
            check_name(name)


@pytest.mark.parametrize("value", [False, "false", b"false", {"preset": "none"}, '{"preset": "none"}'])
def test_opting_out(value: Any) -> None:
    assert is_opt_out(value)
    assert expand(value, PRESETS) is None


@pytest.mark.parametrize(
    "value", [None, 0, "", "0", "none", {}, [], {"preset": None}, {"preset": "warm"}, "{", "[" * 100_000]
)
def test_what_is_no_opt_out(value: Any) -> None:
    assert not is_opt_out(value)


def test_a_spec_without_a_preset_is_left_alone() -> None:
    assert expand(WARM, PRESETS) is WARM
    assert expand({**WARM, "preset": None}, PRESETS) == WARM
    for odd in (7, True, [], "[]"):
        assert expand(odd, PRESETS) == (json.loads(odd) if isinstance(odd, str) else odd)


@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        (None, "ksteer", "got null"),
        ("null", "ksteer", "got null"),
        ("{", "ksteer", "not valid JSON"),
        ("[" * 100_000, "ksteer", "nested too deeply"),
        ({"preset": "cold"}, "preset", "no preset named 'cold'; available: warm, two, none"),
        ({"preset": "warn"}, "preset", "available: warm, two, none; did you mean 'warm'?"),
        ({"preset": "None"}, "preset", "available: warm, two, none; did you mean 'none'?"),
        ("warm", "ksteer", f'such as {EXAMPLE}, got str \'warm\'; did you mean {{"preset": "warm"}}?'),
        ("casual", "ksteer", f"such as {EXAMPLE}, got str 'casual' (not valid JSON"),
        ('"warm"', "ksteer", f"such as {EXAMPLE}, got str 'warm'"),
        ({"preset": 3}, "preset", "no preset named 3"),
        ({"preset": ["warm"]}, "preset", "no preset named ['warm']"),
        ({"preset": "x" * 500}, "preset", "no preset named 'xxx"),
        ({"preset": "none", "alpha": 1}, "alpha", "not allowed beside preset 'none'"),
        ({"preset": "two", "alpha": 1}, "alpha", "a stack: only report can be set"),
        ({"preset": "two", "stack": [WARM]}, "stack", "a stack: only report can be set"),
        (
            {"preset": "warm", "stack": [WARM]},
            "stack",
            "not allowed beside preset 'warm', which is a single edit",
        ),
    ],
)
def test_refusals(value: Any, field: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(value, PRESETS)
    assert caught.value.field == field
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_stack_takes_a_report() -> None:
    assert expand({"preset": "two", "report": True}, PRESETS) == {**STACK, "report": True}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (False, "the body for no steering"),
        ('{"preset": "none"}', "the body for no steering"),
        ({"preset": "two"}, "the model's name asks for preset 'warm', the body for 'two'"),
        ("{", "not valid JSON"),
        (7, f"expected an object such as {EXAMPLE}, got int 7"),
    ],
)
def test_a_model_name_and_a_body_that_do_not_agree(value: Any, says: str) -> None:
    with pytest.raises(SpecError, match=r"^ksteer") as caught:
        with_model_preset(value, "warm")
    assert says in str(caught.value)


def test_a_model_name_and_a_body_that_agree() -> None:
    assert with_model_preset(None, "warm") == {"preset": "warm"}
    assert with_model_preset('{"alpha": 1}', "warm") == {"preset": "warm", "alpha": 1}
    assert with_model_preset(False, "none") == {"preset": "none"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "expected name: spec, got list"),
        ("a: {b", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("warm: {probe: t, target: [a]}\nwarm: {probe: t, target: [b]}", "'warm' is given twice"),
        ("warm: {probe: t, target: [a], target: [b]}", "'target' is given twice"),
        ("warm: tones", "preset 'warm': ksteer: expected a spec (an object), got str"),
        ("warm: {probe: t, target: [a], alpha: strong}", "preset 'warm': ksteer.alpha: "),
        ("warm: {probe: t, target: [a], force: 1}", "preset 'warm': ksteer.force: unknown field"),
        ("warm: {probe: t, target: {yes: 1}}", "preset 'warm': ksteer.target: the name True is not text"),
        ("warm: {probe: t, target: [a], where: 2026-01-01}", "ksteer.where: expected JSON types, got date"),
        ("warm: {preset: cold}", "preset 'warm': ksteer.preset: a preset cannot name another preset"),
        ("none: {probe: t, target: [a]}", "preset 'none': ksteer.preset: 'none' is reserved"),
        ("a b: {probe: t, target: [a]}", "preset 'a b': ksteer.preset: a preset's name is"),
        ("1: {probe: t, target: [a]}", "preset 1: ksteer.preset: a preset's name is"),
        ("warm: &w {probe: t, target: *w}", "preset 'warm': ksteer: nested too deeply"),
    ],
)
def test_a_bad_file_is_refused_by_file_preset_and_field(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_presets(file)
    assert str(file) in str(caught.value)
    assert says in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            read_presets(path)


def test_an_empty_file_and_merged_mappings(tmp_path: Path) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text("# none yet\n")
    assert read_presets(file) == {}
    file.write_text("warm: &w {probe: t, target: [a], alpha: 1.0}\nhot: {<<: *w, alpha: 9.0}\n")
    assert read_presets(file)["hot"] == {"probe": "t", "target": ["a"], "alpha": 9.0}


def test_the_example_is_a_good_file() -> None:
    presets = read_presets(Path(__file__).parents[3] / "examples" / "presets.yaml")
    assert "lively" in presets
    assert any("stack" in spec for spec in presets.values())


def test_the_configuration_checks_them(tmp_path: Path) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text(json.dumps(PRESETS))
    config = EngineConfig.parse({"presets": str(file), "default": "warm"})
    assert config.presets == PRESETS
    assert EngineConfig.parse(config.as_json()) == config
    with pytest.raises(ConfigError, match="no preset named 'cold'; available: warm, two"):
        EngineConfig.parse({"presets": PRESETS, "default": "cold"})
    with pytest.raises(ConfigError, match="preset 'a b'"):
        EngineConfig.parse({"presets": {"a b": WARM}})
