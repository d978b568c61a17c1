"""Options made from pydantic models: one per field, with the model's description, default and bounds.

    @command
    def calibrate(folder: Folder, plan: Annotated[CalibrationPlan, From(CalibrationPlan)]) -> None:

has an argument FOLDER and an option for every field of CalibrationPlan, and is called with the validated
model. A parameter annotated as a dict is given only the fields that were on the command line, by name, for
plans that are completed elsewhere. Anything that is not a `From` is an ordinary parameter of typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ValidationError

from ksteer_vllm.cli import fields
from ksteer_vllm.cli.errors import clean_errors
from ksteer_vllm.errors import UsageError, first_problem

__all__ = ["From", "command"]


@dataclass(frozen=True)
class From:
    """Which model a parameter's options are made from, and where they differ from its fields.

    Args:
        model: the pydantic model.
        only: the fields that are options; empty: all but `leave_out`.
        leave_out: fields that do not become options.
        names: field -> option, where it is not the field's name with dashes.
        repeated: fields whose option is repeated for every value, instead of taking a list a,b,c.
        open: fields whose default is not shown, because it is decided elsewhere.
        prefix: put before every help text, such as `mlp: `.
    """

    model: type[BaseModel]
    only: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    prefix: str = ""

    def fields(self) -> list[str]:
        """The fields that are options, in the order of the help text."""
        own = self.model.__annotations__
        names = self.only or sorted(self.model.model_fields, key=lambda name: name not in own)
        return [name for name in names if name not in self.leave_out]

    def option(self, name: str) -> str:
        """What the option of a field is called."""
        return self.names.get(name, "--" + name.replace("_", "-"))

    def parameter(self, name: str) -> inspect.Parameter:
        """The typer parameter of a field."""
        info = self.model.model_fields[name]
        kind, shown = fields.text_type(info), info.default
        default: Any
        flags = self.option(name)
        options: dict[str, Any] = {"help": _prefixed(self.prefix, fields.help_text(info))}
        if name in self.repeated:
            kind, default = list[str] | None, None
            options["metavar"] = "NAME"
        elif kind is bool:
            default = bool(shown)
            flags = f"{flags}/--no-{flags.removeprefix('--')}" if shown else flags
        else:
            options["metavar"] = fields.metavar(info)
            default = ... if info.is_required() else None if name in self.open else fields.as_text(shown)
            kind = kind if default is ... else kind | None
        return _keyword(name, Annotated[kind, typer.Option(flags, **options)], default)

    def validated(self, given: Mapping[str, Any]) -> BaseModel:
        """The model with the fields that were given as text. Raises UsageError, naming the option."""
        values = {
            name: fields.from_text(self.model.model_fields[name], value) for name, value in given.items()
        }
        try:
            return self.model.model_validate(values)
        except ValidationError as error:
            problem = first_problem(error)
            name = problem.path[0] if problem.path else ""
            if name not in values or problem.kind == "value_error":
                raise UsageError(str(problem)) from None
            expected = fields.expectation(self.model.model_fields[name])
            raise UsageError(f"{self.option(name)}: expected {expected}, got {given[name]!r}") from None


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command for typer: models become options, and errors are shown in one line."""
    hints = get_type_hints(function, include_extras=True)
    parameters, groups = [_keyword("context", typer.Context)], dict[str, From]()
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        source = next((extra for extra in get_args(hint)[1:] if isinstance(extra, From)), None)
        if source is None:
            parameters.append(
                _keyword(parameter.name, _with_metavar(parameter.name, hint), parameter.default)
            )
        else:
            groups[parameter.name] = source
            parameters += [source.parameter(name) for name in source.fields()]

    @wraps(function)
    def run(context: typer.Context, **values: Any) -> None:
        with clean_errors():
            for parameter, source in groups.items():
                on_the_line = {name: values.pop(name) for name in source.fields()}
                given = {name: value for name, value in on_the_line.items() if _is_given(context, name)}
                made = source.validated(given)
                partial = get_origin(get_args(hints[parameter])[0]) is dict
                values[parameter] = {name: getattr(made, name) for name in given} if partial else made
            function(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _prefixed(prefix: str, sentence: str) -> str:
    """`For mlp: width of both hidden layers.`"""
    return prefix + sentence[0].lower() + sentence[1:] if prefix else sentence


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    default = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}


def _with_metavar(name: str, hint: Any) -> Any:
    """An ordinary parameter that is shown alike in every version of typer: FOLDER, --out PATH."""
    kind, shown = get_args(hint)
    if shown.metavar is None:
        shown = copy(shown)
        if isinstance(shown, typer.models.ArgumentInfo):
            shown.metavar = name.upper()
        else:
            named = [one for one in (kind, *get_args(kind)) if one in _METAVARS]
            shown.metavar = next((_METAVARS[one] for one in named), None)
    return Annotated[kind, shown]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
