"""The `ksteer` command and the flags of `vllm serve`, from their own parsers."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from docs.generate.tables import sentence, table
from ksteer_vllm.cli import app
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.server.flags import add_flags

__all__ = ["commands", "server_flags"]

PROGRAM = "ksteer"

KINDS = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}


def commands() -> str:
    """A section for each subcommand: its usage, its help text, and a table of arguments and options."""
    return "\n".join(_section(name, command) for name, command in _leaves(PROGRAM, get_command(app)))


def server_flags() -> str:
    """A table of the flags this package adds to `vllm serve`, with their keys in `ksteer_vllm.enable`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    rows = []
    for action in parser._actions:
        flag = action.option_strings[0]
        value = f" {action.metavar}" if isinstance(action.metavar, str) else _choices(action)
        key = _key(action.dest)
        rows.append((f"`{flag}{value}`", f"`{key}`" if key else "", sentence(action.help)))
    return table(("flag", "key of `enable`", "meaning"), rows)


def _choices(action: argparse.Action) -> str:
    return f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""


def _key(dest: str) -> str:
    """The engine option a flag sets; empty for a flag of the server alone."""
    name = dest.removeprefix("ksteer_")
    return next((key for key in (name, f"{name}s") if key in EngineConfig.model_fields), "")


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    for name, child in getattr(command, "commands", {}).items():
        if getattr(child, "hidden", False):
            continue
        if hasattr(child, "commands"):
            yield from _leaves(f"{path} {name}", child)
        else:
            yield f"{path} {name}", child


def _section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join([name, *map(_usage, arguments), "[OPTIONS]"])
    lines = [f"### {name}\n", f"```text\n{usage}\n```\n", _help(command.help)]
    if arguments:
        lines.append(table(("argument", "meaning"), [(f"`{_name(a)}`", _meaning(a)) for a in arguments]))
    rows = [(_spelling(o), _default(o), _meaning(o)) for o in options if not getattr(o, "hidden", False)]
    if rows:
        lines.append(table(("option", "default", "meaning"), rows))
    return "\n".join(lines)


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _usage(argument: Any) -> str:
    return _name(argument) if argument.required else f"[{_name(argument)}]"


def _help(text: str | None) -> str:
    """A command's help text, with the words in code style that its docstring has so."""
    return inspect.cleandoc(text or "").replace("\f", "").replace("\b", "") + "\n"


def _meaning(parameter: Any) -> str:
    text = str(getattr(parameter, "help", "") or "")
    variable = getattr(parameter, "envvar", None)
    return f"{text} Environment: `{variable}`." if variable else text


def _spelling(option: Any) -> str:
    """`--name TYPE`, and the way to turn it off."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    return f"{names} {_kind(option)}"


def _kind(option: Any) -> str:
    """What an option's value is; older releases of typer say it with an object of click's."""
    if option.metavar:
        return f"`{option.metavar}`".replace("|", "` or `")
    descriptor = getattr(option, "type_descriptor", None)
    if descriptor is None:
        return str(option.type.name).replace(" range", "")
    annotation = _inner(descriptor.annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    return KINDS.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _inner(annotation: Any) -> Any:
    """The type of one value: without None, and without the list of an option that may be repeated."""
    while (arguments := get_args(annotation)) and get_origin(annotation) is not Literal:
        annotation = next(argument for argument in arguments if argument is not type(None))
    return annotation


def _default(option: Any) -> str:
    """What an option is if it is not given; empty if that is nothing or off."""
    if option.required:
        return "required"
    default = option.default
    if default is None or default is False or default in ("", (), []) or callable(default):
        return ""
    return f"`{'on' if default is True else getattr(default, 'value', default)}`"
