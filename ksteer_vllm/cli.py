"""The `ksteer` command: fit a probe, look at one, run the demo."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import ksteer_vllm
from ksteer_vllm.errors import ConfigError, DecoderNotFoundError, HostVersionError, ProbeError, SpecError

__all__ = ["app"]

app = typer.Typer(
    help="K-Steering in vLLM: fit probes, look at them, run the demo.",
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
    """K-Steering in vLLM: fit probes, look at them, run the demo."""


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="A model folder, or a Hugging Face model name.")],
    data: Annotated[Path, typer.Argument(help="JSON Lines of prompt, reply and labels.")],
    out: Annotated[Path, typer.Option(help="The probe folder to write.")],
    layer: Annotated[
        int | None, typer.Option(min=0, help="Decoder block; default: 60 % of the depth.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Labels to fit, a,b,c; default: all, sorted.")] = "",
    width: Annotated[int, typer.Option(min=1, max=4096, help="Width of both hidden layers.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="At most; early stopping may end sooner.")] = 30,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Of AdamW.")] = 0.01,
    noise: Annotated[float, typer.Option(min=0.0, help="Input noise, in standard deviations.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the batches.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the engine, as in vLLM.")] = "auto",
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Of the engine, as in vLLM.")] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of the engine, as in vLLM.")
    ] = None,
) -> None:
    """Fit a probe to labelled text, on activations of the vLLM engine itself."""
    from ksteer_vllm.fit.data import read_rows
    from ksteer_vllm.fit.pipeline import fit_probe_to_rows
    from ksteer_vllm.fit.report import report_table
    from ksteer_vllm.fit.train import FitPlan

    _quiet_vllm()
    options: dict[str, Any] = {"dtype": dtype}
    if max_model_len is not None:
        options["max_model_len"] = max_model_len
    if gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = gpu_memory_utilization
    console = _console()
    with _clean_errors():
        probe = fit_probe_to_rows(
            model,
            read_rows(data),
            labels=[label.strip() for label in labels.split(",") if label.strip()],
            layer=layer,
            plan=FitPlan(width=width, epochs=epochs, weight_decay=weight_decay, noise=noise, seed=seed),
            engine_options=options,
            console=console,
        )
        probe.save(out)
    console.print(report_table(probe.metadata.metrics), report_table(probe.metadata.metrics, "replies"))
    console.print(f"probe of layer {probe.metadata.layer}, labels {', '.join(probe.labels)}: {out}")


@app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="A probe folder.")]) -> None:
    """Show a probe: what it was fitted on, how well it reads held-out text, and what it weighs."""
    from ksteer_vllm.fit.report import report_table
    from ksteer_vllm.probe import Probe

    with _clean_errors():
        probe = Probe.load(folder)
    metadata, console = probe.metadata, _console()
    facts = Table(show_header=False, box=None)
    for name, value in (
        ("labels", ", ".join(metadata.labels)),
        ("site", f"{metadata.site} of decoder block {metadata.layer} of {metadata.model.num_layers}"),
        (
            "model",
            f"{metadata.model.name} ({metadata.model.model_type}, hidden size {metadata.model.hidden_size})",
        ),
        ("hidden layers", f"{probe.w1.shape[0]} and {probe.w2.shape[0]}, {metadata.activation}"),
        ("default alpha", ", ".join(f"{m} {a:.4g}" for m, a in metadata.default_alpha.items()) or "none"),
        ("digest", f"{metadata.digest} (verified)"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    if "tokens" in metadata.metrics:
        console.print(report_table(metadata.metrics), report_table(metadata.metrics, "replies"))
    norms = Table(title="norms", title_justify="left")
    norms.add_column("tensor")
    norms.add_column("shape")
    norms.add_column("norm", justify="right")
    for name, tensor in probe.tensors().items():
        norms.add_row(name, " x ".join(map(str, tensor.shape)), f"{tensor.norm():.4g}")
    for label, vector in zip(probe.labels, probe.label_vectors, strict=True):
        norms.add_row(f"label vector {label}", str(len(vector)), f"{vector.norm():.4g}")
    console.print(norms)
    if metadata.training:
        training = Table(title="training", title_justify="left", show_header=False)
        for key, value in metadata.training.items():
            training.add_row(key, str(value))
        console.print(training)


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
