"""How the commands show an error: one line and exit status 2, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ksteer_vllm.errors import KSteerError

__all__ = ["OneLineErrors", "clean_errors"]

WORKBENCH = (
    *("datasets", "gguf", "huggingface_hub", "jinja2", "matplotlib", "openai", "pandas", "scipy", "sklearn"),
    *("tabulate", "tokenizers", "transformers"),
)
"""Modules of the extra `workbench`."""

REMEDIES = {"torch": "install vLLM or torch", "vllm": "install vLLM"} | dict.fromkeys(
    WORKBENCH, "install ksteer-vllm with its extra, [workbench]"
)

_ParserError: type[Exception] = typer.BadParameter.__mro__[1]
"""The UsageError of click, of which some versions of typer bring their own copy."""


@contextmanager
def clean_errors() -> Iterator[None]:
    """An error a user can act on is one line and exit status 2; anything else keeps its traceback.

    Raises:
        typer.Exit: with status 2, once the line is printed.
    """
    try:
        yield
    except KSteerError as error:
        line = str(error)
    except OSError as error:
        if error.filename is None:
            raise
        line = f"{error.filename}: {error.strerror}"
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in REMEDIES:
            raise
        line = f"this needs {missing}: {REMEDIES[missing]}"
    except _ParserError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        line = " ".join(error.format_message().split())  # type: ignore[attr-defined]
    else:
        return
    typer.echo(f"ksteer: {line}", err=True)
    raise typer.Exit(2)


class OneLineErrors(TyperGroup):
    """A group of commands that reports wrong options and arguments in one line, too."""

    def invoke(self, ctx: Any) -> Any:
        with clean_errors():
            return super().invoke(ctx)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with clean_errors():
            return super().make_context(*arguments, **options)
