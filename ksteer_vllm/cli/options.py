"""What the commands share: arguments, groups of options, the console, and what is said to vLLM."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from ksteer_vllm.cli.from_models import From

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset

__all__ = [
    "Data",
    "DataOptions",
    "Engine",
    "EngineOptions",
    "Judge",
    "JudgeOptions",
    "Model",
    "Source",
    "one_process",
    "quiet_vllm",
    "wide_console",
]

NARROWEST = 118
"""Columns the tables need; a narrower terminal wraps lines instead of cutting cells."""


def wide_console() -> Console:
    """The console results are printed on."""
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


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineOptions(_Group):
    """Of the engine a command starts."""

    dtype: Annotated[str, Field(description="The engine's data type, as in vLLM.")] = "auto"
    max_model_len: Annotated[
        int | None, Field(ge=1, description="The engine's longest sequence, in tokens, as in vLLM.")
    ] = None
    gpu_memory_utilization: Annotated[
        float | None, Field(ge=0, le=1, description="Share of the device's memory to use, as in vLLM.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Those of vllm.LLM that were asked for."""
        found = self.model_dump(exclude_none=True)
        return {name: value for name, value in found.items() if (name, value) != ("dtype", "auto")}


class DataOptions(_Group):
    """How DATA is read."""

    questions: Annotated[
        Path | None,
        Field(
            description="For tones and debates: a local file with a column `text`, instead of the questions "
            "on the hub."
        ),
    ] = None
    max_questions: Annotated[
        int | None, Field(ge=1, description="For tones and debates: how many of the questions to take.")
    ] = None
    chat: Annotated[
        bool, Field(description="Treat prompts that are texts as a user's message: use the chat template.")
    ] = False
    prompt_column: Annotated[
        str | None, Field(description="The table's column of prompts; default: prompt or text.")
    ] = None
    label_column: Annotated[
        str | None, Field(description="The table's column of labels; default: label, if there is one.")
    ] = None
    reply_column: Annotated[
        str | None,
        Field(description="The table's replies; default: reply, response, completion, answer or output."),
    ] = None
    split: Annotated[
        str | None, Field(description="Which split of hub:owner/name to take; default: train.")
    ] = None

    def open(self, data: str, labels: tuple[str, ...] = ()) -> TaskDataset:
        """The task that DATA names. Raises DataError, UsageError."""
        from ksteer_vllm.data.opening import open_task
        from ksteer_vllm.data.tables import Columns

        columns = Columns(prompt=self.prompt_column, label=self.label_column, reply=self.reply_column)
        return open_task(
            data,
            labels=labels,
            questions=self.questions,
            max_questions=self.max_questions,
            chat=self.chat,
            split=self.split,
            columns=columns if columns != Columns() else None,
        )


class JudgeOptions(_Group):
    """Who reads the replies."""

    judge: Annotated[
        str | None,
        Field(description="The judge: reader, probe or openai; default: the one that suits the data."),
    ] = None
    judge_url: Annotated[
        str | None, Field(description="For openai: the endpoint, such as http://localhost:8000/v1.")
    ] = None
    judge_model: Annotated[str | None, Field(description="For openai: the model's name at the endpoint.")] = (
        None
    )
    judge_concurrency: Annotated[
        int | None, Field(ge=1, description="For openai: how many requests to run at a time.")
    ] = None
    judge_timeout: Annotated[
        float | None, Field(ge=0.1, description="For openai: how many seconds a request may take.")
    ] = None

    def of_endpoint(self) -> dict[str, Any]:
        """What was said of an endpoint, by the names `bench.judges` knows."""
        named = self.model_dump(exclude={"judge"}, exclude_none=True)
        return {name.removeprefix("judge_"): value for name, value in named.items()}


Model = Annotated[str, typer.Argument(help="A model folder, or a model's name on the hub.")]
Data = Annotated[
    str,
    typer.Argument(
        help="A .jsonl, .json or .csv file of labelled text; one of tones, debates and demo; or "
        "hub:owner/name."
    ),
]
Engine = Annotated[EngineOptions, From(EngineOptions)]
Source = Annotated[DataOptions, From(DataOptions)]
Judge = Annotated[JudgeOptions, From(JudgeOptions)]
