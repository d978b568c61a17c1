"""`ksteer fit`: labelled text -> a probe, or a suite of several methods'."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

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
from ksteer_vllm.spec.families import fits

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset
    from ksteer_vllm.experiments.suite.fit import SuitePlan

__all__ = ["fit"]

ALL = "all"


def fit(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The probe folder to write, or of several methods the suite.")],
    method: Annotated[
        str, typer.Option(help=f"One of: {', '.join(fits())}; or several, a,b,c, or all: a suite.")
    ] = "mlp",
    layer: Annotated[
        int | None, typer.Option(min=0, help="Decoder block; default: 60 % of the depth.")
    ] = None,
    layers: Annotated[str, typer.Option(help="Several blocks, 1,2,3, each with its own tensors.")] = "",
    labels: Annotated[str, typer.Option(help="Labels to fit, a,b,c; default: all of the data.")] = "",
    positions: Annotated[
        str | None,
        typer.Option(help="What is read of a row: reply (each token; the default), reply-mean, prompt-last."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="mlp: as published: paper, pip-0.1.2.")] = None,
    width: Annotated[
        int | None, typer.Option(min=1, max=4096, help="mlp: of both hidden layers; default: 256.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="mlp: bce, or cross-entropy where a row shows one label.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; early stopping may end sooner; mlp: 30.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, help="Of AdamW; mlp: 0.01.")] = None,
    noise: Annotated[
        float | None, typer.Option(min=0.0, help="mlp: input noise, in standard deviations; default: 0.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="mlp: networks to train, the best is kept; default: 1.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="loreft, lorest: of each label's edit.")] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="actadd: how many first positions; default: 4.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of all that is drawn.")] = 0,
    keep_activations: Annotated[
        bool, typer.Option("--keep-activations", help="Leave the recorded shards in OUT/activations.")
    ] = False,
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
    """Fit a probe, or other methods, to labelled text, on activations of the vLLM engine itself.

    Started again after it was interrupted, it goes on with what is recorded and fitted already.
    """
    from ksteer_vllm.data.opening import open_task
    from ksteer_vllm.data.positions import window_of
    from ksteer_vllm.experiments.suite.fit import SuitePlan
    from ksteer_vllm.fit.presets import preset_of

    quiet_vllm()
    one_process()
    console = wide_console()
    with clean_errors():
        chosen = preset_of(preset)
        if preset is not None and not {"mlp", ALL} & set(names_of(method)):
            raise UsageError(f"preset: {preset} is one of the method mlp, not of {method}")
        options = given(
            width=width,
            loss=loss,
            epochs=epochs,
            weight_decay=weight_decay,
            noise=noise,
            seeds=seeds,
            rank=rank,
            first=first,
        )
        plan = SuitePlan(
            methods=() if method == ALL else names_of(method),
            labels=names_of(labels),
            layer=layer,
            layers=numbers_of("layers", layers),
            options=options,
            probe_options=chosen.options,
            window=chosen.window if positions is None else window_of(positions),
            compat=chosen.compat,
            seed=seed,
            keep_activations=keep_activations,
        )
        engine_options = given(
            dtype=dtype, max_model_len=max_model_len, gpu_memory_utilization=gpu_memory_utilization
        )
        dataset = open_task(
            data,
            labels=names_of(labels),
            chat=chat,
            split=split,
            columns=columns_of(prompt_column, label_column, reply_column),
            **given(questions=questions, max_questions=max_questions),
        )
        if len(plan.methods) == 1:
            _one(model, dataset, out, plan, engine_options, console)
        else:
            _several(model, dataset, out, plan, engine_options, console)


def _one(
    model: str,
    dataset: TaskDataset,
    out: Path,
    plan: SuitePlan,
    engine_options: Mapping[str, Any],
    console: Console,
) -> None:
    from ksteer_vllm.bench.suite import SUITE_FILE
    from ksteer_vllm.experiments.suite.fit import ACTIVATIONS
    from ksteer_vllm.fit.describe import metrics_tables
    from ksteer_vllm.fit.pipeline import complete_rows, fit_to_rows

    (method,) = plan.methods
    if (out / SUITE_FILE).exists():
        raise UsageError(f"{out}: holds a suite, to which several methods are fitted; take another folder")
    rows = list(dataset.rows)
    if plan.reads_replies:
        rows = complete_rows(
            model,
            rows,
            out / "replies.jsonl",
            labels=dataset.labels,
            seed=plan.seed,
            engine_options=engine_options,
            console=console,
        )
    probe = fit_to_rows(
        model,
        rows,
        method,
        labels=dataset.labels,
        layer=plan.layer,
        layers=plan.layers,
        options={**plan.options_of(method), "seed": plan.seed},
        window=plan.window,
        compat=plan.compat,
        folder=out / ACTIVATIONS,
        engine_options=engine_options,
        console=console,
    )
    probe.save(out)
    if not plan.keep_activations:
        shutil.rmtree(out / ACTIVATIONS, ignore_errors=True)
    metadata = probe.metadata
    for table in metrics_tables(metadata.metrics):
        console.print(table)
    kind = "probe" if method == "mlp" else method
    at = f"layers {', '.join(map(str, metadata.layers))}" if metadata.layers else f"layer {metadata.layer}"
    console.print(f"{kind} of {at}, labels {', '.join(probe.labels)}: {out}")


def _several(
    model: str,
    dataset: TaskDataset,
    out: Path,
    plan: SuitePlan,
    engine_options: Mapping[str, Any],
    console: Console,
) -> None:
    from ksteer_vllm.experiments.suite.fit import fit_suite
    from ksteer_vllm.experiments.suite.writeup import suite_table

    suite = fit_suite(model, dataset, out, plan, engine_options=engine_options, console=console)
    console.print(suite_table(suite))
    console.print(f"suite of {len(suite.paths)} methods and the evaluation probe: {out}")
    console.print(f"next: ksteer calibrate {out}")
