"""`ksteer calibrate`: how strongly each method can steer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import Engine, Judge, Source, one_process, quiet_vllm, wide_console
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan

__all__ = ["calibrate"]

Plan = Annotated[
    CalibrationPlan,
    From(CalibrationPlan, repeated=("variants",)),
]


@command
def calibrate(
    folder: Annotated[Path, typer.Argument(help="A suite folder; or a probe folder, together with --data.")],
    plan: Plan,
    judge: Judge,
    source: Source,
    engine: Engine,
    data: Annotated[
        str,
        typer.Option(
            help="With a probe folder: the data to take prompts from; demo, which has its own judge, or any "
            "data together with --judge openai."
        ),
    ] = "",
    model: Annotated[
        str, typer.Option(help="With a probe folder: the model; default: the one it was fitted on.")
    ] = "",
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Make the strengths the probes' defaults.")
    ] = True,
) -> None:
    """Find how strongly each method can steer.

    For every variant and number of labels, it finds the best strength and the largest one at which replies
    stay coherent. An interrupted run resumes with the replies it already has.
    """
    if not data and (given := source.model_dump(exclude_defaults=True)):
        raise UsageError(f"{', '.join(given)}: say how --data is read; give it, too")
    quiet_vllm()
    one_process()
    from ksteer_vllm.experiments.calibration.command import CalibrationRequest, calibrate_folder

    request = CalibrationRequest(
        folder=folder,
        plan=plan,
        data=data,
        open_data=source.open,
        model=model,
        judge=judge.judge or "",
        judge_options=judge.of_judge(),
        allow_chance_judge=judge.allow_chance_judge,
        write=write,
        engine_options=engine.arguments(),
    )
    calibrate_folder(request, wide_console())
