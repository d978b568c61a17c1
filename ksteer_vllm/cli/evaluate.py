"""`ksteer eval`: what steering did, and who does it better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ksteer_vllm.cli.options import clean_errors, given, numbers_of, one_process, quiet_vllm, wide_console

__all__ = ["evaluate"]


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="SUITE", help="A calibrated suite folder.")],
    sizes: Annotated[
        str | None, typer.Option(help="How many labels at once, such as 1,2; default: as calibrated.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Evaluation prompts, the first so many.")] = 20,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variants", help="A variant or a probe of the suite; repeatable; default: all."),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="reader, probe or openai; default: the suite's.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="openai: the endpoint, such as http://localhost:8000/v1.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="openai: the model's name there.")] = None,
    judge_concurrency: Annotated[int | None, typer.Option(min=1, help="openai: requests at a time.")] = None,
    judge_timeout: Annotated[float | None, typer.Option(min=0.1, help="openai: seconds per request.")] = None,
    avoid: Annotated[
        str | None,
        typer.Option(help="rest: away from all other labels, or none; default: as calibrated."),
    ] = None,
    strength: Annotated[str, typer.Option(help="Which calibrated one: best or largest_coherent.")] = "best",
    steps: Annotated[str, typer.Option(help="Of the curve of gradient steps.")] = "1,2,4,8,16",
) -> None:
    """Evaluate every variant of a suite at its calibrated strength, over combinations of labels.

    Sampling is that of the calibration, which its strengths and its coherence rule are for.

    Started again after it was interrupted, it goes on with the replies it has.
    """
    from pydantic import ValidationError

    from ksteer_vllm.errors import UsageError, first_problem
    from ksteer_vllm.experiments.evaluation.command import run_evaluation
    from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan

    quiet_vllm()
    one_process()
    console = wide_console()
    options: dict[str, Any] = given(
        url=judge_url, model=judge_model, concurrency=judge_concurrency, timeout=judge_timeout
    )
    with clean_errors():
        try:
            plan = EvaluationPlan.model_validate(
                {
                    "prompts": prompts,
                    "variants": tuple(variants or ()),
                    "judge": judge or ("openai" if judge_url else None),
                    "judge_options": options,
                    "strength": strength,
                    "steps": numbers_of("steps", steps),
                    **given(
                        sizes=None if sizes is None else numbers_of("sizes", sizes),
                        avoid=avoid,
                    ),
                }
            )
        except ValidationError as error:
            first = first_problem(error)
            raise UsageError(f"{first}, got {first.got!r}") from None
        run_evaluation(folder, plan, console)
