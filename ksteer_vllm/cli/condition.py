"""`ksteer condition`: choose the threshold of a condition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import (
    Data,
    DataOptions,
    Engine,
    Model,
    one_process,
    quiet_vllm,
    wide_console,
)

__all__ = ["condition"]


@command
def condition(
    model: Model,
    data: Data,
    folder: Annotated[Path, typer.Argument(help="A probe folder of family mlp, linear or vectors.")],
    label: Annotated[str, typer.Option(help="The probe's label whose score the condition tests.")],
    source: Annotated[DataOptions, From(DataOptions, leave_out=("questions", "max_questions", "chat"))],
    engine: Engine,
    steer: Annotated[
        str, typer.Option(help="The label of the rows that should be steered; default: that of --label.")
    ] = "",
    name: Annotated[str, typer.Option(help="The probe's name in requests; default: the folder's name.")] = "",
) -> None:
    """Choose the threshold of a condition from labelled text.

    A condition (CAST) steers only where a score says so. Its precision and recall on held-out rows are
    printed, and then the condition itself, in the form a spec takes.
    """
    quiet_vllm()
    one_process()
    from ksteer_vllm.fit.condition import condition_table, find_condition
    from ksteer_vllm.fit.pipeline import progress_bar
    from ksteer_vllm.probes.probe import Probe

    console = wide_console()
    with progress_bar(console) as progress:
        found = find_condition(
            model,
            source.open(data, (steer or label,)).rows,
            Probe.load(folder),
            label,
            steer=steer,
            engine_options=engine.arguments(),
            progress=progress,
        )
    console.print(condition_table(found))
    typer.echo(json.dumps(found.as_spec(name or folder.resolve().name), ensure_ascii=False))
