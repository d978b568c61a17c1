"""The `ksteer` command: fit or convert, choose a condition, look at an artifact, run the demo."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import ksteer_vllm
from ksteer_vllm.convert.command import convert
from ksteer_vllm.errors import ConfigError, DecoderNotFoundError, HostVersionError, ProbeError, SpecError
from ksteer_vllm.methods import fits

__all__ = ["app"]

app = typer.Typer(
    help="Steering in vLLM: fit probes and vectors, look at them, run the demo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

NARROWEST = 118
"""Columns the tables need; a narrower terminal wraps lines instead of cutting cells."""


@contextmanager
def _clean_errors() -> Iterator[None]:
    """An error a user can act on is one line and exit status 2; anything else keeps its traceback."""
    from ksteer_vllm.fit.data import DataError

    known = (ConfigError, DataError, DecoderNotFoundError, HostVersionError, ProbeError, SpecError)
    try:
        yield
    except known as error:
        typer.echo(f"ksteer: {error}", err=True)
        raise typer.Exit(2) from None


def _console() -> Console:
    console = Console()
    return console if console.width >= NARROWEST else Console(width=NARROWEST)


def _quiet_vllm() -> None:
    """Errors only, unless the caller has chosen a level. Before vLLM is imported."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)  # vLLM logs before it reads the variable
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ksteer {ksteer_vllm.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Steering in vLLM: fit probes and vectors, look at them, run the demo."""


Model = Annotated[str, typer.Argument(help="A model folder, or a Hugging Face model name.")]
Data = Annotated[
    Path,
    typer.Argument(help="JSON Lines of prompt, reply, labels; or of prompt, positive, negative, label."),
]
Dtype = Annotated[str, typer.Option(help="Of the engine, as in vLLM.")]
MaxModelLen = Annotated[int | None, typer.Option(min=1, help="Of the engine, as in vLLM.")]
GpuMemory = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Of the engine, as in vLLM.")]


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def fit(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The probe folder to write.")],
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(fits())}.")] = "mlp",
    layer: Annotated[
        int | None, typer.Option(min=0, help="Decoder block; default: 60 % of the depth.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Labels to fit, a,b,c; default: all, sorted.")] = "",
    width: Annotated[
        int | None, typer.Option(min=1, max=4096, help="mlp: of both hidden layers; default: 256.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; early stopping may end sooner; mlp: 30.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, help="Of AdamW; mlp: 0.01.")] = None,
    noise: Annotated[
        float | None, typer.Option(min=0.0, help="mlp: input noise, in standard deviations; default: 0.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="loreft, lorest: of each label's edit.")] = None,
    positions: Annotated[
        int | None, typer.Option(min=1, help="actadd: how many first positions; default: 4.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of all that is drawn.")] = 0,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemory = None,
) -> None:
    """Fit a probe, or another method, to labelled text, on activations of the vLLM engine itself."""
    from ksteer_vllm.fit.data import read_rows
    from ksteer_vllm.fit.describe import metrics_tables
    from ksteer_vllm.fit.pipeline import fit_to_rows

    _quiet_vllm()
    console = _console()
    with _clean_errors():
        artifact = fit_to_rows(
            model,
            read_rows(data),
            method,
            labels=[label.strip() for label in labels.split(",") if label.strip()],
            layer=layer,
            options=_given(
                width=width,
                epochs=epochs,
                weight_decay=weight_decay,
                noise=noise,
                rank=rank,
                positions=positions,
                seed=seed,
            ),
            engine_options=_given(
                dtype=dtype, max_model_len=max_model_len, gpu_memory_utilization=gpu_memory_utilization
            ),
            console=console,
        )
        artifact.save(out)
    metadata = artifact.metadata
    for table in metrics_tables(metadata.metrics):
        console.print(table)
    kind = "probe" if method == "mlp" else method
    console.print(f"{kind} of layer {metadata.layer}, labels {', '.join(artifact.labels)}: {out}")


@app.command()
def condition(
    model: Model,
    data: Data,
    folder: Annotated[Path, typer.Argument(help="A probe folder of family mlp, linear or vectors.")],
    label: Annotated[str, typer.Option(help="The label of the probe to read.")],
    steer: Annotated[
        str, typer.Option(help="The label of the rows that are to be steered; default: the same.")
    ] = "",
    name: Annotated[str, typer.Option(help="The probe's name in requests; default: the folder's.")] = "",
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemory = None,
) -> None:
    """Choose the threshold of a spec's condition (CAST) on labelled text, and print the condition."""
    from ksteer_vllm.artifact import Artifact
    from ksteer_vllm.fit.condition import condition_table, find_condition
    from ksteer_vllm.fit.data import read_rows
    from ksteer_vllm.fit.pipeline import progress_bar

    _quiet_vllm()
    console = _console()
    options = _given(dtype=dtype, max_model_len=max_model_len, gpu_memory_utilization=gpu_memory_utilization)
    with _clean_errors(), progress_bar(console) as progress:
        found = find_condition(
            model,
            read_rows(data),
            Artifact.load(folder),
            label,
            steer=steer,
            engine_options=options,
            progress=progress,
        )
    console.print(condition_table(found))
    typer.echo(json.dumps(found.as_spec(name or folder.resolve().name), ensure_ascii=False))


app.command()(convert)


@app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="A probe folder.")]) -> None:
    """Show a probe of any family: what it was fitted on, how it reads held-out text, what it weighs."""
    from ksteer_vllm.artifact import Artifact
    from ksteer_vllm.fit.describe import describe

    with _clean_errors():
        artifact = Artifact.load(folder)
    console = _console()
    for table in describe(artifact):
        console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for model, labelled text, probe and results.")],
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 if a claim is missed.")] = False,
    questions: Annotated[int, typer.Option(min=1, help="Test questions per row of the table.")] = 100,
    model: Annotated[Path | None, typer.Option(help="Another model of the demo language.")] = None,
    seed: Annotated[int, typer.Option(help="Of labelled text, fit and sampling.")] = 0,
) -> None:
    """Fit, calibrate and steer the small model that comes with this package."""
    _quiet_vllm()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # two short-lived engines: no new processes
    import torch

    from ksteer_vllm.demo import MODEL_DIR
    from ksteer_vllm.demo.run import DemoPlan, run_demo

    torch.set_num_threads(1)  # in a model this small, threads only wait for each other
    with _clean_errors():
        plan = DemoPlan(test_questions=questions, seed=seed)
        holds = run_demo(out, plan, model=model or MODEL_DIR, console=_console())
    if check and not holds:
        raise typer.Exit(1)
