"""Which layer to steer at: how well probes read every layer, and how well steering there works.

Everything is recorded in one pass over all layers. K-Steering and CAA are fitted at every layer and steered,
one layer at a time, at the same few lengths in units of the layer's own spread (`unit: normalised`), all in
one batch of one engine.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.combinations import avoided
from ksteer_vllm.bench.engines import model_of
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.judges import JUDGES, Judge, judge_for
from ksteer_vllm.bench.judges.probe import EvaluationProbe, check_reader
from ksteer_vllm.bench.suite import EVALUATION
from ksteer_vllm.bench.unsteered import unsteered_rule
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.bench.verdicts import Verdicts
from ksteer_vllm.data.rows import LabelledRow, Prompt, labels_of
from ksteer_vllm.data.split import without_instruction
from ksteer_vllm.errors import UsageError, listing
from ksteer_vllm.experiments.layers.plan import LayerPlan
from ksteer_vllm.experiments.suite.common import ACTIVATIONS, REPLIES
from ksteer_vllm.experiments.suite.fit import EVALUATION_WIDTH
from ksteer_vllm.fit.activations import Recorder, default_layer
from ksteer_vllm.fit.gates import check_replies
from ksteer_vllm.fit.pipeline import complete_rows, few_threads, progress_bar
from ksteer_vllm.fit.stacking import fit_once
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.models import check_layers
from ksteer_vllm.probes.probe import Probe

if TYPE_CHECKING:
    import pandas as pd

    from ksteer_vllm.data.dataset import TaskDataset

__all__ = ["RULE", "LayerSweep", "recommended", "sweep_layers"]

K_STEERING, CAA = "K-Steering", "CAA"
STEPS = 8
RULE = (
    "of the layers whose share of replies on target under K-Steering, at the best of the tried strengths, is "
    "within one standard error of the highest, the one nearest to 60 % of the depth; the lower of two"
)

_JUDGES = ("reader", "probe")
_CELL = ("method", "layer", "strength")
_READ = ("mlp", "linear", "caa")
_VARIANTS = (
    Variant(name=K_STEERING, probe="mlp", family="mlp", method="gradient", settings={"num_steps": STEPS}),
    Variant(name=CAA, probe="caa", family="vectors", method="add"),
)


@dataclass(frozen=True)
class LayerSweep:
    """What a layer sweep found.

    Attributes:
        reading: Columns layer, method, auroc (of single tokens, mean over labels).
        steering: Columns layer, method, strength, on_target, shows_target, coherent (shares), replies.
        layer: The recommended layer.
        by_depth: The layer at 60 % of the depth.
        unsteered: Share of the unsteered replies that are coherent.
    """

    reading: pd.DataFrame
    steering: pd.DataFrame
    layer: int
    by_depth: int
    num_layers: int
    unsteered: float
    rule: CoherenceRule
    judge: str


def sweep_layers(
    model: str,
    dataset: TaskDataset,
    folder: str | Path,
    plan: LayerPlan | None = None,
    *,
    suite: Path | None = None,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> LayerSweep:
    """Record, fit, steer and judge. A sweep that was interrupted resumes with what `folder` holds.

    Args:
        model: what vLLM is to load.
        dataset: the labelled rows.
        folder: where probes and the journal are kept.
        plan: the layers, and what is tried at each; None: the defaults.
        suite: the suite folder, whose fit shares the replies that the model writes here; None: `folder`.
        engine_options: further arguments of `vllm.LLM`.
        console: where progress is shown.

    Returns:
        How well every layer is read and steered, and the one that is recommended.

    Raises:
        DataError: for rows that cannot be fitted to, and for replies the model wrote under instructions
            that do not show their labels, unless the plan allows it.
        UsageError: for layers the model does not have, a judge that is not for layer sweeps, and an
            evaluation probe at chance that is to judge, unless the plan allows it.
    """
    plan, folder = plan or LayerPlan(), Path(folder)
    num_layers = model_of(model, engine_options).num_layers
    layers = tuple(sorted(set(plan.layers))) or tuple(range(num_layers))
    check_layers("layers", layers, num_layers, UsageError)
    labels = labels_of(dataset.rows, plan.labels or dataset.labels)
    partition = dataset.partition(plan.seed)
    prompts = tuple(partition.prompts["calibration"])[: plan.prompts]
    judge = _judge(plan.judge or dataset.judge, labels)
    with progress_bar(console) as progress:

        def completed(given: Sequence[LabelledRow]) -> list[LabelledRow]:
            return complete_rows(
                model,
                given,
                (suite or folder) / REPLIES,
                seed=plan.seed,
                plan=plan.replies,
                engine_options=engine_options,
                progress=progress,
            )

        given = [_some(part, plan) for part in (partition.steering, partition.evaluation)]
        steered_by, read_by = map(completed, given)
        task = FitTask.of(
            model,
            steered_by,
            "mlp",
            labels=labels,
            layer=default_layer(num_layers),
            options=plan.fit_options,
            engine_options=engine_options,
            progress=progress,
            shared_options=True,
        )
        reader = replace(
            task,
            rows=[without_instruction(row) for row in read_by],
            options={"seed": plan.seed + 1, "width": EVALUATION_WIDTH},
        )
        check_replies(
            [*steered_by, *read_by],
            [row for part in given for row in part],
            labels,
            allowed=plan.allow_invisible_labels,
            console=progress.console,
        )
        with few_threads(task.identity):
            paths = _fit_all(task, reader, layers, folder)
        jobs = _jobs(prompts, labels, layers, plan)
        evaluation = Probe.load(paths.pop(EVALUATION))
        if judge.name == EvaluationProbe.name and not plan.allow_chance_judge:
            check_reader(evaluation, labels)
        with (
            Bench(
                model,
                {variant.probe: paths[variant.probe] for variant in _VARIANTS},
                reader=evaluation,
                layers=layers,
                engine_options=engine_options,
                temperature=plan.temperature,
                max_tokens=plan.max_tokens,
            ) as bench,
            Journal(folder / "journal.jsonl", bench.identity) as journal,
        ):
            rule = unsteered_rule(
                bench, prompts, Verdicts(judge), seed=plan.seed, journal=journal, progress=progress
            )
            replies = bench.run(jobs, journal=journal, progress=progress, description="steering every layer")
    reading = _reading({name: Probe.load(path) for name, path in paths.items()}, layers)
    steering = _steering(replies, rule, judge)
    return LayerSweep(
        reading,
        steering,
        recommended(steering, num_layers),
        default_layer(num_layers),
        num_layers,
        rule.unsteered,
        rule,
        judge.name,
    )


def _judge(name: str, labels: Sequence[str]) -> Judge:
    if name in JUDGES and name not in _JUDGES:
        raise UsageError(f"judge: {name!r} cannot judge a layer sweep; known: {listing(_JUDGES)}")
    return judge_for(name, labels)


def _some(rows: Sequence[LabelledRow], plan: LayerPlan) -> list[LabelledRow]:
    """At most `plan.rows` of them, drawn."""
    if len(rows) <= plan.rows:
        return list(rows)
    return random.Random(plan.seed).sample(list(rows), plan.rows)


def _fit_all(task: FitTask, reader: FitTask, layers: Sequence[int], folder: Path) -> dict[str, Path]:
    """Method -> folder of its probe with tensors for every layer, and the evaluation probe's.

    All are recorded by one engine; the shards are gone when everything is fitted.
    """
    probes, shards = folder / "probes", folder / ACTIVATIONS
    with Recorder(task.model, layers, engine_options=task.engine_options, progress=task.progress) as recorder:
        steering = replace(task, recorder=recorder, folder=shards / "steering")
        evaluation = replace(reader, recorder=recorder, folder=shards / "evaluation")
        paths = {name: fit_once(replace(steering, method=name), probes / name, layers) for name in _READ}
        at = min(layers, key=lambda layer: abs(layer - task.layer))
        paths[EVALUATION] = fit_once(replace(evaluation, layer=at), probes / EVALUATION)
    shutil.rmtree(shards, ignore_errors=True)
    return paths


def _jobs(
    prompts: Sequence[Prompt], labels: Sequence[str], layers: Sequence[int], plan: LayerPlan
) -> list[Job]:
    """Every variant, layer, strength and label on every prompt."""
    seeds = {index: plan.seed + index for index in range(len(prompts))}
    jobs: list[Job] = []
    for variant in _VARIANTS:
        for layer in layers:
            for strength in plan.strengths:
                alpha = strength / STEPS if variant.name == K_STEERING else strength
                tags = {"method": variant.name, "layer": layer, "strength": strength}
                for label in labels:
                    spec = variant.spec(
                        [label], avoided(labels, [label]), alpha, layer=layer, unit="normalised"
                    )
                    jobs += [
                        Job(prompt, spec, seeds[index], {**tags, "target": [label]})
                        for index, prompt in enumerate(prompts)
                    ]
    return jobs


def _reading(probes: Mapping[str, Probe], layers: Sequence[int]) -> pd.DataFrame:
    import pandas as pd

    found = []
    for name, probe in probes.items():
        for layer in layers:
            metrics = probe.metadata.metrics
            here = metrics["layers"][str(layer)] if probe.metadata.layers else metrics
            found.append({"layer": layer, "method": name, "auroc": here["tokens"]["mean"]["auroc"]})
    return pd.DataFrame(found)


def _steering(replies: Sequence[Reply], rule: CoherenceRule, judge: Judge) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for reply, verdict in zip(replies, judge.judge(replies), strict=True):
        if not verdict.judged:
            continue
        shows = verdict.shows(reply.job.tags["target"])
        coherent = rule.coherent(reply) and verdict.coherent is not False
        tags = {name: reply.job.tags[name] for name in _CELL}
        rows.append({**tags, "on_target": shows and coherent, "shows_target": shows, "coherent": coherent})
    cells = pd.DataFrame(rows).groupby(list(_CELL), sort=True)
    shares = cells[["on_target", "shows_target", "coherent"]].mean()
    return shares.assign(replies=cells.size()).reset_index()


def recommended(steering: pd.DataFrame, num_layers: int) -> int:
    """The layer that RULE gives; steering: as in `LayerSweep`."""
    own = steering[steering["method"] == K_STEERING]
    best = own.loc[own.groupby("layer")["on_target"].idxmax()]
    top = best.loc[best["on_target"].idxmax()]
    error = math.sqrt(top["on_target"] * (1 - top["on_target"]) / top["replies"])
    near = best[best["on_target"] >= top["on_target"] - error]["layer"].tolist()
    return int(min(near, key=lambda layer: (abs(layer - default_layer(num_layers)), layer)))
