"""What the commands share: arguments, options, the console, and how an error is shown."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ksteer_vllm.errors import KSteerError, UsageError

if TYPE_CHECKING:
    from ksteer_vllm.data.tables import Columns

__all__ = [
    "Chat",
    "Data",
    "Dtype",
    "GpuMemory",
    "LabelColumn",
    "MaxModelLen",
    "MaxQuestions",
    "Model",
    "PromptColumn",
    "Questions",
    "ReplyColumn",
    "Split",
    "clean_errors",
    "columns_of",
    "given",
    "names_of",
    "numbers_of",
    "one_process",
    "quiet_vllm",
    "wide_console",
]

WORKBENCH = (
    "datasets", "gguf", "huggingface_hub", "jinja2", "matplotlib", "openai", "pandas", "scipy", "sklearn",
    "tabulate", "tokenizers", "torch", "transformers",
)  # fmt: skip
"""Modules of the extra `workbench`."""

NARROWEST = 118
"""Columns the tables need; a narrower terminal wraps lines instead of cutting cells."""


@contextmanager
def clean_errors() -> Iterator[None]:
    """An error a user can act on is one line and exit status 2; anything else keeps its traceback."""
    try:
        yield
    except KSteerError as error:
        typer.echo(f"ksteer: {error}", err=True)
        raise typer.Exit(2) from None
    except ModuleNotFoundError as error:
        if error.name not in WORKBENCH:
            raise
        typer.echo(
            f"ksteer: this needs {error.name}: install ksteer-vllm with its extra, [workbench]", err=True
        )
        raise typer.Exit(2) from None


def wide_console() -> Console:
    console = Console()
    return console if console.width >= NARROWEST else Console(width=NARROWEST)


def quiet_vllm() -> None:
    """Errors only, unless the caller has chosen a level. Before vLLM is imported."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)  # vLLM logs before it reads the variable
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")


def one_process() -> None:
    """Engines run in this process and end with it, unless the caller has chosen otherwise.

    Before an engine starts.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


Model = Annotated[str, typer.Argument(help="A model folder, or a Hugging Face model name.")]
Data = Annotated[
    str,
    typer.Argument(
        help="A .jsonl, .json or .csv file of labelled text; tones, debates or demo; or hub:owner/name."
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option(help="tones, debates: a local file with a column text, instead of the hub's questions."),
]
MaxQuestions = Annotated[
    int | None, typer.Option(min=1, help="tones, debates: take only the first so many questions.")
]
Chat = Annotated[
    bool, typer.Option("--chat", help="Texts of prompts are what a user says: use the chat template.")
]
PromptColumn = Annotated[
    str | None, typer.Option(help="Of a table: what holds the prompts; default: prompt or text.")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Of a table: what names a row's label; default: label, if there is one.")
]
ReplyColumn = Annotated[
    str | None, typer.Option(help="Of a table: what holds the replies; default: reply, if there is one.")
]
Split = Annotated[str | None, typer.Option(help="hub:owner/name: which split to take; default: train.")]
Dtype = Annotated[str, typer.Option(help="Of the engine, as in vLLM.")]
MaxModelLen = Annotated[int | None, typer.Option(min=1, help="Of the engine, as in vLLM.")]
GpuMemory = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Of the engine, as in vLLM.")]


def columns_of(prompt: str | None, label: str | None, reply: str | None) -> Columns | None:
    """The columns that were named; None if none was."""
    from ksteer_vllm.data.tables import Columns

    named = given(prompt=prompt, label=label, reply=reply)
    return Columns(**named) if named else None


def names_of(text: str) -> tuple[str, ...]:
    """The names in `a,b,c`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def numbers_of(field: str, text: str) -> tuple[int, ...]:
    """The numbers in `1,2,3`. Raises UsageError, naming the field, for anything else."""
    try:
        return tuple(int(name) for name in names_of(text))
    except ValueError:
        raise UsageError(f"{field}: expected numbers such as 1,2,3, got {text[:80]!r}") from None


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}
