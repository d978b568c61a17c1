"""`ksteer demo`: fit, calibrate and steer the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import one_process, quiet_vllm, wide_console
from ksteer_vllm.demo.plan import DemoPlan

__all__ = ["demo"]

SMOLLM2 = "smollm2"


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
        Path | None,
        typer.Option(
            help="The word smollm2 for a real model from the package index, steered towards five behaviours "
            "in about 8 minutes; or a folder with a model trained on the demo's language. Default: the "
            "shipped one."
        ),
    ] = None,
) -> None:
    """Fit, calibrate and steer the shipped model, or a real one."""
    quiet_vllm()
    one_process()
    if model == Path(SMOLLM2):
        from ksteer_vllm.demo.smollm2.run import run_smollm2_demo

        run_smollm2_demo(out, wide_console())
        return
    import torch

    from ksteer_vllm.demo import MODEL_DIR
    from ksteer_vllm.demo.run import run_demo

    torch.set_num_threads(1)  # in a model this small, threads only wait for each other
    holds = run_demo(out, plan, model=model or MODEL_DIR, console=wide_console())
    if check and not holds:
        raise typer.Exit(1)
