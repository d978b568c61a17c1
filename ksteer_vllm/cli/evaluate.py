"""`ksteer eval`: what steering did, and which method does it better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ksteer_vllm.bench.judges import ENDPOINT
from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import Judge, one_process, quiet_vllm, wide_console
from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan

__all__ = ["evaluate"]

Fields = Annotated[
    dict[str, Any],
    From(
        EvaluationPlan,
        leave_out=("judge", "judge_options", "allow_chance_judge", "texts", "temperature", "max_tokens"),
        repeated=("variants",),
        open=("sizes", "avoid"),
    ),
]


@command
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="SUITE", help="A calibrated suite folder.")],
    fields: Fields,
    judge: Judge,
) -> None:
    """Evaluate the methods of a calibrated suite.

    Every variant runs at its calibrated strength, over combinations of labels. Replies are sampled as they
    were in the calibration, because its strengths and coherence rule hold for that sampling only. An
    interrupted run resumes with the replies it already has.
    """
    quiet_vllm()
    one_process()
    from ksteer_vllm.experiments.evaluation.command import run_evaluation

    options = judge.of_judge()
    name = judge.judge or (ENDPOINT if "url" in options else None)
    plan = EvaluationPlan(
        **fields, judge=name, judge_options=options, allow_chance_judge=judge.allow_chance_judge
    )
    run_evaluation(folder, plan, wide_console())
