"""`ksteer fit`: labelled text -> a probe, or a suite of several methods'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.knob import Knob, OfKnob, make_from_command_line
from ksteer_vllm.cli.options import (
    DATA_HELP,
    Engine,
    Model,
    Replies,
    Source,
    one_process,
    quiet_vllm,
    wide_console,
)
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.suite.plan import SuitePlan
from ksteer_vllm.fit.plans import ActAddPlan, EditPlan, FitPlan
from ksteer_vllm.spec.families import fits

__all__ = ["fit"]

ALL = "all"

MaybeData = Annotated[
    str | None, typer.Argument(help=DATA_HELP + " Not with --behaviours.", show_default=False)
]

Fields = Annotated[dict[str, Any], From(SuitePlan, leave_out=("methods", "options", "replies"))]
OfProbe = Annotated[
    dict[str, Any],
    From(FitPlan, only=("width", "loss", "weight_decay", "noise", "seeds"), prefix="For mlp: "),
]
OfTraining = Annotated[
    dict[str, Any],
    From(FitPlan, only=("epochs",), open=("epochs",), prefix="For mlp, loreft and lorest: "),
]
OfEdits = Annotated[dict[str, Any], From(EditPlan, only=("rank",), prefix="For loreft and lorest: ")]
OfActAdd = Annotated[dict[str, Any], From(ActAddPlan, only=("first",), prefix="For actadd: ")]


@command
def fit(
    model: Model,
    data: MaybeData = None,
    *,
    out: Annotated[
        Path, typer.Option(help="The folder to write: a probe, or a suite if several methods are fitted.")
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help=f"One of {', '.join(fits())}; or several of them, or all, for a suite.",
        ),
    ] = "mlp",
    knob: Knob,
    of_knob: OfKnob,
    fields: Fields,
    of_probe: OfProbe,
    of_training: OfTraining,
    of_edits: OfEdits,
    of_actadd: OfActAdd,
    replies: Replies,
    source: Source,
    engine: Engine,
) -> None:
    """Fit a probe, or several methods, to labelled text or behaviours.

    With --behaviours or --calibrate one command does it all: the probe, its strength, and a table of what it
    does on questions kept apart. Otherwise the probe is fitted and no more. Activations are recorded in the
    vLLM engine itself. An interrupted run resumes with what it has already recorded and fitted.
    """
    quiet_vllm()
    one_process()
    from ksteer_vllm.experiments.suite.fit import fit_suite
    from ksteer_vllm.experiments.suite.reading import REMEDY, judge_line, linear_reads_better
    from ksteer_vllm.experiments.suite.single import fit_single
    from ksteer_vllm.experiments.suite.writeup import suite_table
    from ksteer_vllm.fit.describe import metrics_tables
    from ksteer_vllm.fit.linear_control import control_line

    console = wide_console()
    knob.check_alone()
    if knob.wanted:
        given = replies.model_dump(include=replies.model_fields_set)
        options = {**of_knob, **fields, **of_probe, **of_training, **of_edits, **of_actadd, **given}
        if method != "mlp":
            options["method"] = method
        make_from_command_line(model, data, out, knob, options, source, engine.arguments(), console)
        return
    if data is None:
        raise UsageError("DATA: missing; name labelled text, or say in words what you want (--behaviours)")
    named = tuple(name.strip() for name in method.split(",") if name.strip())
    options = {**of_probe, **of_training, **of_edits, **of_actadd}
    plan = SuitePlan(methods=() if method == ALL else named, options=options, replies=replies, **fields)
    dataset = source.open(data, plan.labels)
    if len(plan.methods) == 1:
        probe = fit_single(model, dataset, out, plan, engine_options=engine.arguments(), console=console)
        for table in metrics_tables(probe.metadata.metrics):
            console.print(table)
        if line := control_line(probe):
            console.print(f"{line}{REMEDY}", style="yellow", highlight=False)
        kind = "probe" if method == "mlp" else method
        layers = probe.metadata.layers
        at = f"layers {', '.join(map(str, layers))}" if layers else f"layer {probe.metadata.layer}"
        console.print(f"{kind} of {at}, labels {', '.join(probe.labels)}: {out}")
    else:
        suite = fit_suite(model, dataset, out, plan, engine_options=engine.arguments(), console=console)
        console.print(suite_table(suite))
        for line in (linear_reads_better(suite.probes), judge_line(suite.evaluation, suite.file.labels)):
            if line:
                console.print(line, style="yellow", highlight=False)
        console.print(f"suite of {len(suite.paths)} methods and the evaluation probe: {out}")
        console.print(f"next: ksteer calibrate {out}")
