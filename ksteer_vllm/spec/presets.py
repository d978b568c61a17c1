"""Presets: specs with names. Reading a file of them, and what a request that names one asks for.

Pure: no vLLM. Whether a preset can be run by an engine is checked where a `Registry` is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ksteer_vllm.errors import ConfigError, SpecError, choices, listing
from ksteer_vllm.spec.model import decoded, expected_object, shown
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY, SteeringSpec

__all__ = [
    "NO_STEERING",
    "PRESET_KEY",
    "check_name",
    "check_preset",
    "expand",
    "is_opt_out",
    "preset_named",
    "read_presets",
    "with_model_preset",
]

PRESET_KEY = "preset"
NO_STEERING = "none"
"""The reserved name: no steering."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_RULE = "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit"
_BESIDE_A_STACK = ("report",)
_MERGE = "tag:yaml.org,2002:merge"


def check_name(name: Any, field: str = PRESET_KEY) -> str:
    """Check that a name can be a preset's.

    Args:
        name: The name to check.
        field: The field the error names.

    Returns:
        The name.

    Raises:
        SpecError: If it is not of the allowed form, or `none`, which is reserved.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(field, f"a preset's name is {_NAME_RULE}; got {shown(name)}", name)
    if name == NO_STEERING:
        raise SpecError(field, f"{NO_STEERING!r} is reserved: it means no steering", name)
    return name


def is_opt_out(value: Any) -> bool:
    """Whether a request asks explicitly not to be steered: `false` or {"preset": "none"}, also as JSON text.

    Never raises: a malformed value is not an opt-out.
    """
    try:
        value = decoded(value)
    except SpecError:
        return False
    return value is False or (isinstance(value, Mapping) and _names(value) == NO_STEERING)


def preset_named(value: Any) -> str:
    """The name of the preset a request asks for; "" if it names none. Never raises."""
    try:
        value = decoded(value)
    except SpecError:
        return ""
    name = _names(value) if isinstance(value, Mapping) else None
    return name if isinstance(name, str) else ""


def expand(value: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """Fill in the fields of the preset a request names.

    Args:
        value: A spec, {"preset": name, fields that replace the preset's}, False, {"preset": "none"}, or any
            of them as JSON text.
        presets: Name -> spec.

    Returns:
        The spec, unchecked, for `SteeringSpec.parse`; None for an opt-out.

    Raises:
        SpecError: If there is no such preset, or a field cannot stand beside it.
    """
    if isinstance(value, str) and value in presets:
        meant = json.dumps({PRESET_KEY: value})
        raise SpecError(EXTRA_ARGS_KEY, f"{expected_object(value)}; did you mean {meant}?", value)
    value = decoded(value)
    if value is False:
        return None
    if value is None:
        raise SpecError(EXTRA_ARGS_KEY, expected_object(value))
    if not isinstance(value, Mapping) or PRESET_KEY not in value:
        return value
    name = _names(value)
    overrides = {field: given for field, given in value.items() if field != PRESET_KEY}
    if name is None:
        return overrides
    if name == NO_STEERING:
        if overrides:
            field = _path(next(iter(overrides)))
            raise SpecError(field, f"not allowed beside preset {NO_STEERING!r}, which means no steering")
        return None
    if not isinstance(name, str) or name not in presets:
        known = choices(name, [*presets, NO_STEERING], 50)
        raise SpecError(PRESET_KEY, f"no preset named {shown(name)}; available: {known}", name)
    preset = presets[name]
    _check_overrides(name, preset, overrides)
    return {**preset, **overrides}


def with_model_preset(value: Any, name: str) -> Any:
    """Combine the preset named by a request's model with what its body asks for.

    Args:
        value: What the body asks for, or None. It may name the same preset, or give fields that replace the
            preset's.
        name: The preset the model names.

    Returns:
        The combined request, for `expand`.

    Raises:
        SpecError: If the body names another preset or opts out.
    """
    if value is None:
        return {PRESET_KEY: name}
    value = decoded(value)
    if is_opt_out(value) and name == NO_STEERING:
        return {PRESET_KEY: name}
    if is_opt_out(value):
        raise SpecError(
            PRESET_KEY, f"the model's name asks for preset {name!r}, the body for no steering", value
        )
    if isinstance(value, SteeringSpec):
        value = value.model_dump(mode="json", exclude_unset=True)
    if not isinstance(value, Mapping):
        raise SpecError(EXTRA_ARGS_KEY, expected_object(value), value)
    named = _names(value)
    if named not in (None, name):
        raise SpecError(
            PRESET_KEY, f"the model's name asks for preset {name!r}, the body for {shown(named)}", named
        )
    return {**value, PRESET_KEY: name}


def read_presets(file: str | Path) -> dict[str, dict[str, Any]]:
    """Read a YAML file of presets.

    Args:
        file: Its path.

    Returns:
        Name -> spec, in plain JSON types.

    Raises:
        ConfigError: Naming the file, the preset and the field.
    """
    try:
        with Path(file).open("rb") as stream:
            loaded = yaml.load(stream, _Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"presets: cannot read {file}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"presets: {file} is not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        loaded = {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"presets: {file}: expected name: spec, got {type(loaded).__name__}")
    for name, spec in loaded.items():
        try:
            check_preset(name, spec)
        except SpecError as error:
            raise ConfigError(f"presets: {file}: preset {shown(name)}: {error}") from None
    return loaded


def check_preset(name: Any, spec: Any) -> None:
    """Check a preset.

    Args:
        name: Its name.
        spec: Its spec, in plain JSON types.

    Raises:
        SpecError: If the name or the spec is invalid, or the spec names another preset.
    """
    check_name(name)
    if not isinstance(spec, Mapping):
        raise SpecError(EXTRA_ARGS_KEY, f"expected a spec (an object), got {type(spec).__name__}", spec)
    if PRESET_KEY in spec:
        raise SpecError(
            PRESET_KEY, "a preset cannot name another preset: give its own spec", spec[PRESET_KEY]
        )
    try:
        _check_json(spec, EXTRA_ARGS_KEY)
    except RecursionError:
        raise SpecError(EXTRA_ARGS_KEY, "nested too deeply") from None
    SteeringSpec.parse(spec)


class _Loader(yaml.SafeLoader):
    """PyYAML's, except that a key given twice is an error; PyYAML keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE or not isinstance(
                key := self.construct_object(key_node, deep=True), Hashable
            ):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check_json(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise SpecError(path, f"the name {shown(key)} is not text: put it in quotes", key)
            _check_json(item, f"{path}.{key[:80]}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{path}.{index}")
    elif not isinstance(value, (str, bool, int, float, type(None))):
        raise SpecError(path, f"expected JSON types, got {type(value).__name__} {shown(value)}", value)


def _check_overrides(name: str, preset: Mapping[str, Any], overrides: Mapping[Any, Any]) -> None:
    if preset.get("stack") is not None:
        beside = [field for field in overrides if field not in _BESIDE_A_STACK]
        if beside:
            raise SpecError(
                _path(beside[0]),
                f"preset {name!r} is a stack: only {listing(_BESIDE_A_STACK)} can be set beside it",
                overrides[beside[0]],
            )
    elif overrides.get("stack") is not None:
        raise SpecError(
            "stack", f"not allowed beside preset {name!r}, which is a single edit", overrides["stack"]
        )


def _names(value: Mapping[str, Any]) -> Any:
    """The preset a mapping names; None if it names none."""
    return value.get(PRESET_KEY)


def _path(field: Any) -> str:
    return str(field)[:80] or EXTRA_ARGS_KEY
