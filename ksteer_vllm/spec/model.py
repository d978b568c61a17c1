"""The base of everything a spec is made of, and what is said of a value that is none of it: one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ksteer_vllm.errors import SpecError, choices, did_you_mean, listing

__all__ = ["EXAMPLE", "MAX_STACK", "SpecModel", "decoded", "expected_object", "shown", "spec_error"]

MAX_STACK: Final = 1024
"""The most edits of a stack, beyond any engine's own limit, `EngineConfig.max_stack`."""

EXAMPLE: Final = '{"probe": "NAME", "target": ["LABEL"]} or {"preset": "NAME"}'
"""What a spec looks like, for those who send something else."""

MOST_FIELDS: Final = 50
"""How many fields an error message names: all that a model has."""


class SpecModel(BaseModel):
    """A part of a spec. Built in Python, it raises the SpecError that a client is answered with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise spec_error(type(self), error) from None

    # pydantic's mark of an __init__ that its own validation passes by: a part inside a spec is then reported
    # with its path, and not by an error of its own.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def decoded(value: Any) -> Any:
    """What a client sent, JSON text read.

    Args:
        value: A mapping, a SteeringSpec, or either as JSON text; anything else is returned as it is.

    Raises:
        SpecError: For text that is not JSON, or that is JSON for a text.
    """
    if not isinstance(value, (str, bytes)):
        return value
    try:
        found = json.loads(value)  # NaN passes here and is refused by the field that holds it
    except RecursionError:
        raise SpecError("ksteer", "nested too deeply") from None
    except ValueError as error:
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        reason = f"not valid JSON: {error}"
        if not text.lstrip().startswith(("{", "[")):  # a word, where an object was meant
            reason = f"{expected_object(value)} ({reason})"
        raise SpecError("ksteer", reason, value) from None
    if isinstance(found, str):  # JSON text is decoded once
        raise SpecError("ksteer", expected_object(found), found)
    return found


def expected_object(got: Any) -> str:
    """What to say of a value that is no object at all."""
    found = "null" if got is None else f"{type(got).__name__} {shown(got)}"
    return f"expected an object such as {EXAMPLE}, got {found}"


def spec_error(model: type[BaseModel], error: ValidationError) -> SpecError:
    """The first problem pydantic found, as clients are told of it.

    Missing fields come last: an unknown field is often a misspelt one.

    Args:
        model: What was validated.
        error: What pydantic raised.
    """
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] != "missing"), problems[0])
    cause = first.get("ctx", {}).get("error")
    path = [str(part)[:80] for part in first["loc"] if not _is_type_branch(part)]
    if isinstance(cause, SpecError):
        if not path:
            return cause
        text = str(cause).partition(": ")[2]
        return SpecError(".".join([*path, cause.field]), text, cause.got)
    got = None if first["type"] == "missing" else first["input"]
    return SpecError(".".join(path) or "ksteer", _message(model, first, path), got)


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        return repr(value)[:120]
    except RecursionError:
        return "a value nested too deeply"


def _message(model: type[BaseModel], problem: Mapping[str, Any], path: list[str]) -> str:
    """What is wrong, what is allowed, what was given: one sentence."""
    kind = problem["type"]
    if kind == "missing":
        return "required"
    if kind == "extra_forbidden":
        return f"unknown field; allowed: {choices(problem['loc'][-1], _fields_at(model, path), MOST_FIELDS)}"
    if kind in ("too_short", "too_long"):  # of stack: no other list has bounds of pydantic's
        return f"expected a list of 1 to {MAX_STACK} edits, got {problem['ctx']['actual_length']}"
    message = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a valid list")
    if kind == "literal_error":
        meant = did_you_mean(problem["input"], re.findall("'([^']+)'", problem["ctx"]["expected"]))
        return f"{problem['msg']} (got {shown(problem['input'])}){meant}"
    if kind == "model_type":
        message = f"expected an object of {listing(_fields_at(model, path), MOST_FIELDS)}"
    return message if ", got " in message else f"{message} (got {shown(problem['input'])})"


def _fields_at(model: type[BaseModel], path: list[str]) -> Mapping[str, Any]:
    """The fields of the innermost model on a path."""
    for part in path:
        if part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type names, say `tuple[Edit, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


_TYPE_BRANCHES = {"float", "int", "bool", "constrained-int", "nullable", "word", "Hinge"}


def _is_type_branch(part: Any) -> bool:
    """pydantic adds the tried type of a union to the path; that is no field of ours."""
    return isinstance(part, str) and (part in _TYPE_BRANCHES or part.startswith(("literal[", "constrained-")))
