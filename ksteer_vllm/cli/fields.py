"""A pydantic field as text: how an option shows it, reads it, and says what it takes."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

__all__ = ["as_text", "expectation", "from_text", "help_text", "metavar", "text_type"]

_NOUNS = {int: "a whole number", float: "a number"}


def text_type(info: FieldInfo) -> Any:
    """The type typer reads: a flag, a path, or text that the model reads."""
    kind = _plain(info.annotation)
    return kind if kind in (bool, Path) else str


def metavar(info: FieldInfo) -> str:
    """What stands for the value in a help text."""
    kind = _plain(info.annotation)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return {int: "INTEGER,...", float: "NUMBER,..."}.get(_item(kind), "NAME,...")
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def help_text(info: FieldInfo) -> str:
    """The field's description, and its bounds as a second sentence."""
    if not info.description:
        raise TypeError(f"{info!r}: an option needs a description")
    bounds = _bounds(info)
    return info.description + (f" {bounds[0].upper()}{bounds[1:]}." if bounds else "")


def expectation(info: FieldInfo) -> str:
    """What the field takes, as a phrase that follows `expected`."""
    kind = _plain(info.annotation)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return {
            int: "numbers such as 1,2,3",
            float: "numbers above 0 such as 0.5,1,2",
        }.get(_item(kind), "names such as a,b,c")
    return " ".join(filter(None, (_NOUNS.get(kind, "text"), _bounds(info))))


def as_text(value: Any) -> str | None:
    """A default as it would be typed; None if there is nothing to show."""
    if value is None or value in ("", ()) or repr(value) == "PydanticUndefined":
        return None
    if isinstance(value, tuple):
        return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def from_text(info: FieldInfo, value: Any) -> Any:
    """The value the model is given for what was typed: a list for a,b,c, otherwise the text as it is."""
    if get_origin(_plain(info.annotation)) is tuple and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _plain(annotation: Any) -> Any:
    """The type without Annotated and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(annotation) if one is not types.NoneType)
        return _plain(kind)
    return annotation


def _item(kind: Any) -> Any:
    return _plain(get_args(kind)[0])


def _bounds(info: FieldInfo) -> str:
    """`from 2 to 64`, `at least 1`, `above 0`, `above 0, at most 1`; empty if there are none."""
    found = {
        name: getattr(bound, name)
        for bound in info.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(bound, name, None) is not None
    }
    if found.keys() == {"ge", "le"}:
        return f"from {found['ge']} to {found['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[name]} {bound}" for name, bound in found.items())
