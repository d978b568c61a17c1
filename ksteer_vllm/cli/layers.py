"""`ksteer layers`: which layer to steer at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import (
    Data,
    Engine,
    Model,
    Replies,
    Source,
    one_process,
    quiet_vllm,
    wide_console,
)
from ksteer_vllm.experiments.layers.plan import LayerPlan

__all__ = ["layers"]


@command
def layers(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="A suite folder, old or new; the write-up goes to OUT/layers.")],
    plan: Annotated[LayerPlan, From(LayerPlan, leave_out=("options", "temperature", "replies"))],
    replies: Replies,
    source: Source,
    engine: Engine,
) -> None:
    """Compare layers for reading and steering, and recommend one.

    The layer at 60 % of the depth is shown for comparison. An interrupted run resumes with what it has
    already recorded, fitted and generated.
    """
    quiet_vllm()
    one_process()
    from ksteer_vllm.experiments.layers.sweep import sweep_layers
    from ksteer_vllm.experiments.layers.writeup import layer_table, write_up

    console, folder = wide_console(), out / "layers"
    dataset = source.open(data, plan.labels)
    plan = plan.model_copy(update={"replies": replies})
    sweep = sweep_layers(
        model, dataset, folder, plan, suite=out, engine_options=engine.arguments(), console=console
    )
    path = write_up(sweep, plan, folder, model=model, task=dataset.name, data_digest=dataset.digest)
    console.print(layer_table(sweep))
    console.print(f"recommended: layer {sweep.layer} (60 % rule: {sweep.by_depth}); {path}")
