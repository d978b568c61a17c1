"""`ksteer layers`: which layer to steer at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.options import (
    Chat,
    Data,
    Dtype,
    GpuMemory,
    LabelColumn,
    MaxModelLen,
    MaxQuestions,
    Model,
    PromptColumn,
    Questions,
    ReplyColumn,
    Split,
    clean_errors,
    columns_of,
    given,
    names_of,
    numbers_of,
    one_process,
    quiet_vllm,
    wide_console,
)
from ksteer_vllm.errors import UsageError

__all__ = ["layers"]


def layers(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The suite folder; the write-up goes to OUT/layers.")],
    only: Annotated[
        str, typer.Option("--layers", help="Decoder blocks to look at, 1,2,3; default: all.")
    ] = "",
    labels: Annotated[str, typer.Option(help="Labels, a,b,c; default: all of the data.")] = "",
    strengths: Annotated[
        str, typer.Option(help="Lengths to steer, in units of the layer's mean |x - mean(x)|.")
    ] = "0.125,0.25,0.5,1",
    prompts: Annotated[int, typer.Option(min=1, help="Calibration prompts per label.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Labelled rows to fit to, at most.")] = 600,
    epochs: Annotated[int, typer.Option(min=1, help="Of every layer's probe, at most.")] = 8,
    noise: Annotated[
        float | None, typer.Option(min=0.0, help="Input noise of the probes, in standard deviations.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="reader or probe; default: the task's.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply.")] = 96,
    seed: Annotated[int, typer.Option(help="Of the halves, the fits and the sampling.")] = 0,
    questions: Questions = None,
    max_questions: MaxQuestions = None,
    chat: Chat = False,
    prompt_column: PromptColumn = None,
    label_column: LabelColumn = None,
    reply_column: ReplyColumn = None,
    split: Split = None,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemory = None,
) -> None:
    """Read and steer every layer, and recommend one; the rule of 60 % of the depth is shown beside it."""
    from ksteer_vllm.data.opening import open_task
    from ksteer_vllm.experiments.layers.sweep import LayerPlan, sweep_layers
    from ksteer_vllm.experiments.layers.writeup import layer_table, write_up

    quiet_vllm()
    one_process()
    console = wide_console()
    with clean_errors():
        plan = LayerPlan(
            layers=numbers_of("layers", only),
            labels=names_of(labels),
            strengths=_lengths(strengths),
            prompts=prompts,
            rows=rows,
            options={"epochs": epochs, **given(noise=noise)},
            judge=judge,
            max_tokens=max_tokens,
            seed=seed,
        )
        dataset = open_task(
            data,
            labels=names_of(labels),
            chat=chat,
            split=split,
            columns=columns_of(prompt_column, label_column, reply_column),
            **given(questions=questions, max_questions=max_questions),
        )
        folder = out / "layers"
        sweep = sweep_layers(
            model,
            dataset,
            folder,
            plan,
            engine_options=given(
                dtype=dtype, max_model_len=max_model_len, gpu_memory_utilization=gpu_memory_utilization
            ),
            console=console,
        )
        path = write_up(sweep, plan, folder, model=model, task=dataset.name, data_digest=dataset.digest)
    console.print(layer_table(sweep))
    console.print(f"recommended: layer {sweep.layer} (60 % rule: {sweep.by_depth}); {path}")


def _lengths(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted(float(name) for name in names_of(text)))
    except ValueError:
        found = ()
    if not found or found[0] <= 0:
        raise UsageError(f"strengths: expected numbers above 0 such as 0.5,1,2, got {text[:80]!r}")
    return found
