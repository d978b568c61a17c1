"""`ksteer calibrate`: how strongly each method may steer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from ksteer_vllm.cli.options import (
    Dtype,
    GpuMemory,
    MaxModelLen,
    clean_errors,
    given,
    numbers_of,
    one_process,
    quiet_vllm,
    wide_console,
)

__all__ = ["calibrate"]


def calibrate(
    folder: Annotated[Path, typer.Argument(help="A suite, or one probe folder together with --data.")],
    data: Annotated[
        str,
        typer.Option(help="Of a probe folder: a task with a judge (demo), or with --judge openai any data."),
    ] = "",
    model: Annotated[str, typer.Option(help="Of a probe folder; default: as it was given to the fit.")] = "",
    variants: Annotated[
        list[str] | None,
        typer.Option("--variants", help="A variant or a probe of the suite; repeatable; default: all."),
    ] = None,
    sizes: Annotated[str, typer.Option(help="How many labels at once; default: 1,2,3.")] = "",
    strengths: Annotated[int, typer.Option(min=2, max=64, help="Of the first grid.")] = 8,
    layers: Annotated[str, typer.Option(help="To choose from, a,b,c; default: each probe's own.")] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Per single label; larger sizes share as many.")] = 12,
    budget: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of the unsteered share of coherent replies.")
    ] = 0.9,
    metric: Annotated[
        str, typer.Option(help="judge or propensity: what the best strength is best at.")
    ] = "judge",
    rounds: Annotated[int, typer.Option(min=0, max=32, help="Of bisection.")] = 3,
    rule: Annotated[
        str, typer.Option(help="best or largest_coherent: which strength the probes are given.")
    ] = "best",
    avoid: Annotated[str, typer.Option(help="rest: steer away from all other labels; or none.")] = "rest",
    judge: Annotated[str, typer.Option(help="reader, probe or openai; default: the data's own.")] = "",
    judge_url: Annotated[
        str | None, typer.Option(help="openai: the endpoint, such as http://localhost:8000/v1.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="openai: the model's name there.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the replies; 0 is greedy.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply.")] = 96,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Write the strengths into the probes.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemory = None,
) -> None:
    """Calibrate: for every variant and number of labels the best strength and the largest coherent one."""
    quiet_vllm()
    one_process()
    from ksteer_vllm.experiments.calibration.command import CalibrationRequest, calibrate_folder
    from ksteer_vllm.experiments.calibration.record import Rule

    console = wide_console()
    with clean_errors():
        request = CalibrationRequest(
            folder=folder,
            plan={
                "sizes": numbers_of("sizes", sizes),
                "strengths": strengths,
                "layers": numbers_of("layers", layers),
                "prompts": prompts,
                "budget": budget,
                "metric": metric,
                "rounds": rounds,
                "avoid": avoid,
                "seed": seed,
            },
            data=data,
            model=model,
            variants=variants or (),
            rule=cast(Rule, rule),
            judge=judge,
            judge_options=given(url=judge_url, model=judge_model),
            temperature=temperature,
            max_tokens=max_tokens,
            write=write,
            engine_options=given(
                dtype=None if dtype == "auto" else dtype,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
            ),
        )
        calibrate_folder(request, console)
