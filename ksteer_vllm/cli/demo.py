"""`ksteer demo`: fit, calibrate and steer the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import one_process, quiet_vllm, wide_console
from ksteer_vllm.demo.plan import DemoPlan

__all__ = ["demo"]


@command
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write: model, labelled text, probe and results.")],
    plan: Annotated[
        DemoPlan, From(DemoPlan, only=("test_questions", "seed"), names={"test_questions": "--questions"})
    ],
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with status 1 if the results fall short of the demo's claims."),
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="A model trained on the demo's language; default: the shipped one.")
    ] = None,
) -> None:
    """Fit, calibrate and steer the model that comes with ksteer."""
    quiet_vllm()
    one_process()
    import torch

    from ksteer_vllm.demo import MODEL_DIR
    from ksteer_vllm.demo.run import run_demo

    torch.set_num_threads(1)  # in a model this small, threads only wait for each other
    holds = run_demo(out, plan, model=model or MODEL_DIR, console=wide_console())
    if check and not holds:
        raise typer.Exit(1)
