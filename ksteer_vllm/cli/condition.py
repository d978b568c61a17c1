"""`ksteer condition`: the threshold of a condition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.options import (
    Data,
    Dtype,
    GpuMemory,
    LabelColumn,
    MaxModelLen,
    Model,
    PromptColumn,
    ReplyColumn,
    Split,
    clean_errors,
    columns_of,
    given,
    one_process,
    quiet_vllm,
    wide_console,
)

__all__ = ["condition"]


def condition(
    model: Model,
    data: Data,
    folder: Annotated[Path, typer.Argument(help="A probe folder of family mlp, linear or vectors.")],
    label: Annotated[str, typer.Option(help="The label of the probe to read.")],
    steer: Annotated[
        str, typer.Option(help="The label of the rows that are to be steered; default: the same.")
    ] = "",
    name: Annotated[str, typer.Option(help="The probe's name in requests; default: the folder's.")] = "",
    prompt_column: PromptColumn = None,
    label_column: LabelColumn = None,
    reply_column: ReplyColumn = None,
    split: Split = None,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemory = None,
) -> None:
    """Choose the threshold of a spec's condition (CAST) on labelled text, and print the condition."""
    from ksteer_vllm.data.opening import open_task
    from ksteer_vllm.fit.condition import condition_table, find_condition
    from ksteer_vllm.fit.pipeline import progress_bar
    from ksteer_vllm.probes.probe import Probe

    quiet_vllm()
    one_process()
    console = wide_console()
    options = given(dtype=dtype, max_model_len=max_model_len, gpu_memory_utilization=gpu_memory_utilization)
    with clean_errors(), progress_bar(console) as progress:
        found = find_condition(
            model,
            open_task(
                data,
                labels=(steer or label,),
                split=split,
                columns=columns_of(prompt_column, label_column, reply_column),
            ).rows,
            Probe.load(folder),
            label,
            steer=steer,
            engine_options=options,
            progress=progress,
        )
    console.print(condition_table(found))
    typer.echo(json.dumps(found.as_spec(name or folder.resolve().name), ensure_ascii=False))
