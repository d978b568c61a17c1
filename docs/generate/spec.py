"""The fields of a spec, from the pydantic models of `ksteer_vllm.spec`."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import ksteer_vllm.spec
from docs.generate.tables import sentence, table
from ksteer_vllm.spec.edit import Edit

__all__ = ["fields"]

FIRST = ("SteeringSpec", "Edit")
"""Models that come before the ones their fields hold."""

BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}",
}  # fmt: skip

SIZES = ("minLength", "maxLength", "minItems", "maxItems")


def fields() -> str:
    """One section a model: what it is, and a table of its fields."""
    return "\n".join(_section(model) for model in models())


def models() -> list[type[BaseModel]]:
    """The public models of `ksteer_vllm.spec`, the outermost first."""
    found = {}
    for module in pkgutil.iter_modules(ksteer_vllm.spec.__path__, "ksteer_vllm.spec."):
        for name, value in vars(import_module(module.name)).items():
            is_model = inspect.isclass(value) and issubclass(value, BaseModel)
            if is_model and value.__module__ == module.name and not name.startswith("_"):
                found[name] = value
    for base in {base.__name__ for model in found.values() for base in model.__bases__}:
        found.pop(base, None)  # its fields are described where they are used
    order = [*(name for name in FIRST if name in found), *sorted(set(found) - set(FIRST))]
    return [found[name] for name in order if found[name].model_fields]


def _section(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    properties = schema.get("properties") or schema["$defs"][model.__name__]["properties"]
    text = inspect.cleandoc(model.__doc__ or "")
    names = [
        name for name in model.model_fields if model.__name__ != FIRST[0] or name not in Edit.model_fields
    ]
    rows = [_row(name, model.model_fields[name], properties[name], text) for name in names]
    head = ("field", "type", "default", "bounds", "meaning")
    return f"### {model.__name__}\n\n{_prose(text, names)}\n\n{table(head, rows)}"


def _prose(docstring: str, names: Collection[str]) -> str:
    """What a docstring says of the whole, as Markdown; `*` and `_` outside code are no emphasis."""
    text = re.split(r"^(?:Args|Attributes|Raises|Returns):$", docstring, maxsplit=1, flags=re.MULTILINE)[0]
    kept = [part for part in text.strip().split("\n\n") if part.partition(":")[0] not in names]
    parts = "\n\n".join(kept).split("`")
    return "`".join(
        part if index % 2 else re.sub(r"([*_])", r"\\\1", part) for index, part in enumerate(parts)
    )


def _row(name: str, field: FieldInfo, schema: Mapping[str, Any], docstring: str) -> tuple[str, ...]:
    default = "required" if field.is_required() else f"`{json.dumps(schema.get('default'), default=str)}`"
    default = "" if default == "`null`" else default
    meaning = sentence(field.description or _said_of(name, docstring) or _said_of_type(_type(schema)))
    return f"`{name}`", _type(schema), default, ", ".join(_bounds(schema)), meaning


def _said_of(name: str, docstring: str) -> str:
    """What a model's docstring says of one field: `name: …` at the beginning of a line."""
    found = re.search(rf"^ *{name}: (.+?)(?=\n *\w+: |\n\s*\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def _said_of_type(kind: str) -> str:
    """The first paragraph about the model that is a field's only type."""
    found = re.fullmatch(r"\[(\w+)\]\(#\w+\)", kind)
    docstrings = [model.__doc__ or "" for model in models() if found and model.__name__ == found[1]]
    return inspect.cleandoc(docstrings[0]).partition("\n\n")[0] if docstrings else ""


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        names = dict.fromkeys(_type(branch) for branch in branches if branch.get("type") != "null")
        return " or ".join(name for name in names if name != "integer" or "number" not in names)
    return _container(schema) or str(schema.get("type", "any"))


def _container(schema: Mapping[str, Any]) -> str:
    """An array or an object by what it holds; empty for anything else."""
    if "prefixItems" in schema:
        return f"[{', '.join(_type(item) for item in schema['prefixItems'])} or null]"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    values = schema.get("additionalProperties")
    return f"object of name → {_type(values)}" if isinstance(values, Mapping) else ""


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    """The bounds of a field, wherever in its schema they stand."""
    parts = [part for part in (schema, *schema.get("anyOf", ())) if "prefixItems" not in part]
    found = {key: part[key] for part in parts for key in (*BOUNDS, *SIZES) if key in part}
    yield from (BOUNDS[key].format(_number(found[key])) for key in BOUNDS if key in found)
    for low, high, what in (("minLength", "maxLength", "characters"), ("minItems", "maxItems", "items")):
        if low in found:
            yield (
                f"{found[low]} to {found[high]} {what}" if high in found else f"at least {found[low]} {what}"
            )


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
