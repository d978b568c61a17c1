"""What `ksteer calibrate` does: open, run, write, print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.judges import ENDPOINT, Judge, described, judge_for
from ksteer_vllm.bench.judges.probe import EvaluationProbe, check_reader
from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.opening import open_task
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration.merge import merged
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.record import CALIBRATION, Calibration
from ksteer_vllm.experiments.calibration.run import calibrate, check_plan
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject
from ksteer_vllm.experiments.calibration.verdict import where_nothing_steers
from ksteer_vllm.experiments.calibration.write import write_defaults
from ksteer_vllm.experiments.calibration.writeup import calibration_frame, spelled, write_up
from ksteer_vllm.fit.pipeline import few_threads, progress_bar
from ksteer_vllm.probes.probe import Probe

__all__ = ["CalibrationRequest", "calibrate_folder"]


@dataclass(frozen=True)
class CalibrationRequest:
    """One calibration of a suite, or of a probe folder with `data`.

    Attributes:
        folder: The suite or the probe folder.
        plan: What to try, and how to choose.
        data: The labelled text that prompts come from, for a probe folder; a suite has its own.
        open_data: What opens it, for data that is not read as it is by default.
        model: The model, for a probe folder; empty: the one the probe was fitted on.
        judge: Name of the judge; empty: the one that suits the data.
        judge_options: Options of the endpoint, if the judge is `openai`.
        allow_chance_judge: Whether an evaluation probe that is at chance may judge.
        write: Whether the strengths become the probes' defaults.
        engine_options: Further arguments of `vllm.LLM`.
    """

    folder: Path
    plan: CalibrationPlan = field(default_factory=CalibrationPlan)
    data: str = ""
    open_data: Callable[[str], TaskDataset] = open_task
    model: str = ""
    judge: str = ""
    judge_options: Mapping[str, Any] = field(default_factory=dict)
    allow_chance_judge: bool = False
    write: bool = True
    engine_options: Mapping[str, Any] = field(default_factory=dict)


def calibrate_folder(request: CalibrationRequest, console: Console) -> Calibration:
    """Calibrate and leave FOLDER/calibration. After an interruption it resumes with the replies it has.

    Args:
        request: what to calibrate, and how.
        console: where the strengths are printed.

    Returns:
        The calibration, with what an earlier one found for other variants.

    Raises:
        UsageError: for a folder, a plan or a judge that do not go together.
        ProbeError: for a probe that cannot be read.
        DataError: for data that cannot be read.
    """
    whole = _subject(request)
    subject = whole.only(request.plan.variants)
    writeup = WriteUp(subject.folder / CALIBRATION, "Calibration")
    plan = request.plan.model_copy(update={"sizes": request.plan.sizes_of(len(subject.labels))})
    judge = _judge(request, subject, plan)
    check_plan(subject, plan, judge)
    if not request.allow_chance_judge and (plan.metric == "propensity" or _is_reader(judge)):
        check_reader(subject.reader, subject.labels)
    used = {variant.probe for variant in subject.variants}
    layers = {at for v in subject.variants for at in subject.layers_of(v, plan.layers) if at is not None}
    layers |= {at for variant in subject.variants for at in variant.settings.get("layers", ())}
    layers |= {subject.probes[name].metadata.layer for name in used}
    with (
        few_threads(subject.probes[min(used)].metadata.model),
        Bench(
            subject.model,
            {name: subject.paths[name] for name in sorted(used)},
            reader=subject.reader,
            layers=sorted(layers),
            engine_options={**subject.engine_options, **request.engine_options},
            temperature=plan.temperature,
            max_tokens=plan.max_tokens,
        ) as bench,
        Journal(subject.folder / CALIBRATION / "journal.jsonl", bench.identity) as journal,
        progress_bar(console) as progress,
    ):
        calibration = calibrate(subject, plan, bench, judge, journal=journal, progress=progress)
    notes = list(subject.notes)
    if (subject.folder / CALIBRATION / "results.json").exists():
        calibration, dropped = _with_earlier(calibration, whole)
        notes += dropped
    written = write_defaults(subject, calibration, rule=plan.rule, probes=used) if request.write else {}
    digests = {name: Probe.load_metadata(subject.paths[name]).digest for name in written}
    calibration = calibration.model_copy(update={"digests": {**calibration.digests, **digests}})
    path = write_up(
        writeup,
        calibration,
        written,
        notes=notes,
        invisible=subject.invisible,
        model=subject.model,
        probes=calibration.digests,
        plan=plan.model_dump(mode="json"),
    )
    console.print(_table(calibration))
    if named := [name for name, changes in written.items() if changes["default_alpha"]]:
        console.print(f"strengths written into: {', '.join(named)}")
    for name, changes in written.items():
        if changes.get("default_edit"):
            console.print(f"{name}: default edit {spelled(changes['default_edit'])}", highlight=False)
    for name, changes in written.items():
        if changes["removed"]:
            console.print(f"{name}: earlier strength of {', '.join(changes['removed'])} removed")
    for line in where_nothing_steers(calibration, subject.invisible):
        console.print(line, style="yellow", highlight=False)
    if request.write and not any(c["default_alpha"] or c.get("default_edit") for c in written.values()):
        console.print("no strength is written")
    for note in notes:
        console.print(f"note: {note}", style="yellow")
    console.print(f"results: {path}")
    return calibration


def _subject(request: CalibrationRequest) -> CalibrationSubject:
    if CalibrationSubject.is_suite(request.folder):
        if request.data:
            raise UsageError("data: a suite has its own prompts; --data goes with a probe folder")
        subject = CalibrationSubject.of_suite(request.folder)
        return replace(subject, model=request.model) if request.model else subject
    if not request.data:
        raise UsageError(f"{request.folder}: a probe folder needs --data, for the prompts and the judge")
    judge = _judge_name(request)
    return CalibrationSubject.of_probe(
        request.folder, request.open_data(request.data), model=request.model, judge=judge
    )


def _judge_name(request: CalibrationRequest) -> str:
    """The judge asked for, or openai if only an endpoint was named; empty: the data's own."""
    return request.judge or (ENDPOINT if request.judge_options else "")


def _with_earlier(found: Calibration, whole: CalibrationSubject) -> tuple[Calibration, list[str]]:
    """See `merged`; an earlier result that cannot be read is dropped."""
    try:
        earlier = Calibration.load(whole.folder)
    except UsageError:
        return found, ["dropped what an earlier calibration found: it cannot be read"]
    return merged(found, earlier, whole.variants, whole.digests)


def _judge(request: CalibrationRequest, subject: CalibrationSubject, plan: CalibrationPlan) -> Judge | None:
    """None if the metric needs none and none was named."""
    name = _judge_name(request) or subject.judge
    if name == "probe" and subject.reader is None:
        if plan.metric == "judge":
            raise UsageError(
                "judge: 'probe' needs an evaluation probe, which a suite has; take `--judge openai` and "
                "`--judge-url`, or fit a suite with `ksteer fit --method all`"
            )
        return None
    options = dict(request.judge_options)
    if name == ENDPOINT:
        options = {
            "journal": subject.folder / CALIBRATION / "verdicts.jsonl",
            "descriptions": described(subject.task, subject.labels),
            **options,
        }
    return judge_for(name, subject.labels, **options)


def _is_reader(judge: Judge | None) -> bool:
    return judge is not None and judge.name == EvaluationProbe.name


def _table(calibration: Calibration) -> Table:
    """The strengths at the chosen layers."""
    frame = calibration_frame(calibration, chosen=True)
    shown = Table(title="calibrated strengths", title_justify="left")
    for column in frame.columns:
        shown.add_column(str(column), justify="left" if column in ("variant", "note") else "right")
    previous = None
    for row in frame.itertuples(index=False):
        if previous is not None and row[1] != previous:
            shown.add_section()
        previous = row[1]
        shown.add_row(*(_cell(value) for value in row))
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)
