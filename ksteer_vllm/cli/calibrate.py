"""`ksteer calibrate`: how strongly each method may steer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import Engine, Judge, one_process, quiet_vllm, wide_console
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan

__all__ = ["calibrate"]

Plan = Annotated[
    CalibrationPlan,
    From(CalibrationPlan, repeated=("variants",)),
]


@command
def calibrate(
    folder: Annotated[Path, typer.Argument(help="A suite; or a probe folder, together with --data.")],
    plan: Plan,
    judge: Judge,
    engine: Engine,
    data: Annotated[
        str,
        typer.Option(help="For a probe folder: a task with a judge (demo), or any data with --judge openai."),
    ] = "",
    model: Annotated[
        str, typer.Option(help="For a probe folder: the model; default: the one it was fitted on.")
    ] = "",
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Write the strengths into the probes.")
    ] = True,
) -> None:
    """Find how strongly each method may steer.

    For every variant and number of labels, these are the best strength and the largest coherent one. A run
    that was interrupted resumes with the replies it has.
    """
    quiet_vllm()
    one_process()
    from ksteer_vllm.experiments.calibration.command import CalibrationRequest, calibrate_folder

    request = CalibrationRequest(
        folder=folder,
        plan=plan,
        data=data,
        model=model,
        judge=judge.judge or "",
        judge_options=judge.of_endpoint(),
        write=write,
        engine_options=engine.arguments(),
    )
    calibrate_folder(request, wide_console())
