"""What the commands share: arguments, groups of options, the console, and what is said to vLLM."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from ksteer_vllm.bench.judges import AllowChanceJudge
from ksteer_vllm.bench.sampling import ReplyPlan
from ksteer_vllm.cli.from_models import From
from ksteer_vllm.errors import UsageError

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
    "Replies",
    "Source",
    "json_object",
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
    """Have vLLM log errors only, unless the caller has chosen a level. Call it before vLLM is imported."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)  # vLLM logs before it reads the variable
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")


def one_process() -> None:
    """Run engines in this process, so that they end with it, with threads that suit what else runs here.

    The caller's own choice wins. Call it before torch is imported, which reads the number of threads then.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if not os.environ.get("OMP_NUM_THREADS") and "torch" not in sys.modules:
        _choose_threads()


def _choose_threads() -> None:
    """Set OMP_NUM_THREADS where one thread per core would be too many, and say so."""
    from ksteer_vllm.bench.machine import threads_here

    chosen = threads_here()
    if chosen is not None:
        os.environ["OMP_NUM_THREADS"] = str(chosen.number)
        typer.echo(f"ksteer: OMP_NUM_THREADS={chosen.number}, for {chosen.reason}", err=True)


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineOptions(_Group):
    """Options of the engine that a command starts."""

    dtype: Annotated[str, Field(description="Data type of the model, as in vLLM.")] = "auto"
    max_model_len: Annotated[
        int | None, Field(ge=1, description="Maximum sequence length in tokens, as in vLLM.")
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        Field(ge=0, le=1, description="Share of the device's memory the engine may use, as in vLLM."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of vllm.LLM that were given on the command line."""
        found = self.model_dump(exclude_none=True)
        return {name: value for name, value in found.items() if (name, value) != ("dtype", "auto")}


class DataOptions(_Group):
    """How DATA is read."""

    questions: Annotated[
        Path | None,
        Field(
            description="For tones and debates: a local file with a column `text`, to use instead of the "
            "questions on the hub."
        ),
    ] = None
    max_questions: Annotated[
        int | None, Field(ge=1, description="For tones and debates: maximum number of questions to use.")
    ] = None
    chat: Annotated[
        bool,
        Field(description="Treat plain-text prompts as user messages, through the model's chat template."),
    ] = False
    prompt_column: Annotated[
        str | None, Field(description="Name of the table's prompt column; default: prompt or text.")
    ] = None
    label_column: Annotated[
        str | None, Field(description="Name of the table's label column; default: label, if there is one.")
    ] = None
    reply_column: Annotated[
        str | None,
        Field(
            description="Name of the table's reply column; default: reply, response, completion, answer or "
            "output, if there is one."
        ),
    ] = None
    ignore_columns: Annotated[
        tuple[str, ...],
        Field(description="Columns of the table to leave out; one that nothing uses is refused otherwise."),
    ] = ()
    encoding: Annotated[
        str | None,
        Field(
            description="Encoding of the file, such as cp1252; default: UTF-8, or UTF-16 where the "
            "file begins with its mark."
        ),
    ] = None
    split: Annotated[
        str | None, Field(description="Which split of hub:owner/name to use; default: train.")
    ] = None

    def open(self, data: str, labels: tuple[str, ...] = ()) -> TaskDataset:
        """Open the labelled text that DATA names.

        Args:
            data: A file, a predefined task, or hub:owner/name.
            labels: The labels to use; empty: all of them.

        Raises:
            DataError: For data that cannot be read, and for columns that nothing would read, unless somebody
                at the terminal says to leave them out.
            UsageError: For an option that does not go with the data.
        """
        from ksteer_vllm.data.opening import open_task
        from ksteer_vllm.data.tables import Columns

        columns = Columns(
            prompt=self.prompt_column,
            label=self.label_column,
            reply=self.reply_column,
            ignore=self.ignore_columns,
        )
        found = open_task(
            data,
            labels=labels,
            questions=self.questions,
            max_questions=self.max_questions,
            chat=self.chat,
            split=self.split,
            columns=columns if columns != Columns() else None,
            encoding=self.encoding,
        )
        if found.unused:
            _leave_out(data, found.unused)
        return found


def _leave_out(data: str, unused: tuple[str, ...]) -> None:
    """Ask whether columns are to be left out; without a terminal, raise DataError."""
    from ksteer_vllm.errors import DataError, listing

    some = len(unused) > 1
    what = f"column{'s' * some} {listing(map(repr, unused))} would not be used"
    if sys.stdin.isatty() and sys.stderr.isatty():
        if typer.confirm(f"{data}: {what}; go on without {'them' if some else 'it'}?", err=True):
            return
        raise typer.Exit(2)
    typed = shlex.quote(",".join(unused))
    raise DataError(
        f"{data}: {what}; leave {'them' if some else 'it'} out (--ignore-columns {typed}), or say what "
        f"{'they hold' if some else 'it holds'} (--prompt-column, --reply-column, --label-column, --labels)"
    )


class JudgeOptions(_Group):
    """Who judges the replies."""

    judge: Annotated[
        str | None,
        Field(
            description="Who judges the replies: readers (exact rules), probe (the suite's evaluation "
            "probe), openai (a model behind an endpoint) or reader (the demo's own rules); default: the one "
            "that suits the data."
        ),
    ] = None
    judge_behaviours: Annotated[
        Path | None,
        Field(
            description="For readers: a file of behaviours, whose checks read the labels; default: the "
            "readers that the labels are named after."
        ),
    ] = None
    judge_url: Annotated[
        str | None, Field(description="For openai: the endpoint's URL, such as http://localhost:8000/v1.")
    ] = None
    judge_model: Annotated[str | None, Field(description="For openai: the model's name at the endpoint.")] = (
        None
    )
    judge_concurrency: Annotated[
        int | None, Field(ge=1, description="For openai: maximum number of requests at a time.")
    ] = None
    judge_timeout: Annotated[
        float | None, Field(ge=0.1, description="For openai: time limit of a request, in seconds.")
    ] = None

    allow_chance_judge: AllowChanceJudge = False

    def of_judge(self) -> dict[str, Any]:
        """The judge's own options that were given, by the names `bench.judges` uses."""
        named = self.model_dump(exclude={"judge", "allow_chance_judge"}, exclude_none=True)
        return {name.removeprefix("judge_"): value for name, value in named.items()}


Model = Annotated[str, typer.Argument(help="A model folder, or a model's name on the hub.")]
DATA_HELP = (
    "Labelled text: a .jsonl, .json, .csv, .tsv or .parquet file; a predefined task (tones, debates or "
    "demo); or hub:owner/name, a dataset on the hub."
)
Data = Annotated[str, typer.Argument(help=DATA_HELP)]
Engine = Annotated[EngineOptions, From(EngineOptions)]
Source = Annotated[DataOptions, From(DataOptions)]
Replies = Annotated[ReplyPlan, From(ReplyPlan)]
Judge = Annotated[JudgeOptions, From(JudgeOptions)]


def json_object(option: str, text: str, holding: str) -> dict[str, Any]:
    """An option's JSON object; empty text is an empty one.

    Args:
        option: The option's name, for messages.
        text: What was given.
        holding: What the object holds, for messages.

    Raises:
        UsageError: For text that is not a JSON object.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"{option}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{option}: expected a JSON object of {holding}")
    return found
