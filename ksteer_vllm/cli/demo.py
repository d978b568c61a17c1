"""`ksteer demo`: fit, calibrate and steer the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import command
from ksteer_vllm.cli.options import one_process, quiet_vllm, wide_console

__all__ = ["demo"]


@command
def demo(
    out: Annotated[Path, typer.Option(help="The folder for model, labelled text, probe and results.")],
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 if a claim is missed.")] = False,
    questions: Annotated[
        int, typer.Option(min=1, help="Number of test questions per row of the table.")
    ] = 100,
    model: Annotated[
        Path | None, typer.Option(help="Another model of the demo language; default: the shipped one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the labelled text, the fit and the sampling.")] = 0,
) -> None:
    """Fit, calibrate and steer the model that comes with ksteer."""
    quiet_vllm()
    one_process()
    import torch

    from ksteer_vllm.demo import MODEL_DIR
    from ksteer_vllm.demo.run import DemoPlan, run_demo

    torch.set_num_threads(1)  # in a model this small, threads only wait for each other
    plan = DemoPlan(test_questions=questions, seed=seed)
    holds = run_demo(out, plan, model=model or MODEL_DIR, console=wide_console())
    if check and not holds:
        raise typer.Exit(1)
