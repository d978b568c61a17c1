"""`ksteer demo --model shipped`: from labelled text to steered replies, with the model in the package."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.convert.model import SOURCE_FILE
from ksteer_vllm.data.rows import write_rows
from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
from ksteer_vllm.demo.corpus import prompt_messages
from ksteer_vllm.demo.judge import ExactReader
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.plan import DemoPlan
from ksteer_vllm.demo.results import (
    METHOD_NAMES,
    RULE,
    Claim,
    Row,
    calibration_table,
    check_claims,
    results_table,
    summarise,
)
from ksteer_vllm.demo.steering import final_jobs, strengths_of, subject_of
from ksteer_vllm.demo.task import labelled_text
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.record import Calibration
from ksteer_vllm.experiments.calibration.run import calibrate
from ksteer_vllm.experiments.calibration.write import write_defaults
from ksteer_vllm.fit.describe import heldout_table
from ksteer_vllm.fit.pipeline import fit_probe_to_rows, progress_bar
from ksteer_vllm.fit.plans import FitPlan
from ksteer_vllm.probes.probe import Probe

__all__ = ["run_demo"]

_SERVED_AS = "tones"


def run_demo(out: Path, plan: DemoPlan | None = None, *, model: Path = MODEL_DIR, console: Console) -> bool:
    """Fit, calibrate and steer the demo model, and print what steering does.

    Args:
        out: The folder to write model, data.jsonl, probe and results.json to.
        plan: Sizes and seed; None: the defaults.
        model: The folder of a model trained on the demo's language.
        console: Where progress, samples and tables are printed.

    Returns:
        Whether everything the demo claims holds.

    Raises:
        UsageError: If no strength that was tried keeps the replies coherent, or the folder holds the demo on
            SmolLM2.
    """
    plan = plan or DemoPlan()
    started = time.perf_counter()
    if (out / "model" / SOURCE_FILE).exists():
        raise UsageError(f"--out {out}: holds the demo on SmolLM2 already; name a new folder, or remove it")
    console.print("the model that comes with the package, in six tones: about 1 min in all on 2 cores")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, out / "model", dirs_exist_ok=True)
    _fit(out, plan, console)
    fitted = time.perf_counter()
    subject = subject_of(out / "probe", out / "model")
    reader = ExactReader(TONES)
    with (
        Bench(subject.model, subject.paths, layers=[plan.layer], engine_options=ENGINE_OPTIONS) as bench,
        progress_bar(console) as progress,
    ):
        calibration_plan = CalibrationPlan(
            sizes=(1,), prompts=plan.calibration_questions, rounds=1, seed=plan.seed
        )
        calibration = calibrate(subject, calibration_plan, bench, reader, progress=progress)
        calibrated = time.perf_counter()
        jobs = final_jobs(subject, strengths_of(calibration), questions=plan.test_questions, seed=plan.seed)
        replies = bench.run(jobs, progress=progress, description="answering test questions", score=False)
    write_defaults(subject, calibration)
    table = summarise(replies, reader)
    claims = check_claims(table)
    seconds = {
        "fit": fitted - started,
        "calibrate": calibrated - fitted,
        "generate": time.perf_counter() - calibrated,
        "total": time.perf_counter() - started,
    }
    console.print(f"rule: {RULE}", calibration_table(calibration))
    _print_samples(replies, console)
    console.print(results_table(table))
    for claim in claims:
        console.print(f"{'holds' if claim.holds else 'MISSED'}: {claim.text}")
    _write_results(out, plan, calibration, table, claims, seconds)
    _print_next_steps(out, replies[0].job.question, seconds["total"], console)
    return all(claim.holds for claim in claims)


def _fit(out: Path, plan: DemoPlan, console: Console) -> None:
    """Leave the labelled text and the probe fitted to it."""
    rows = labelled_text(plan.rows, seed=plan.seed)
    write_rows(out / "data.jsonl", rows)
    console.print(f"model {out / 'model'}; {len(rows)} labelled replies in {out / 'data.jsonl'}")
    probe = fit_probe_to_rows(
        str(out / "model"),
        rows,
        labels=TONES,
        layer=plan.layer,
        plan=FitPlan(seed=plan.seed, epochs=plan.epochs, noise=plan.noise),
        engine_options=ENGINE_OPTIONS,
        console=console,
    )
    console.print(heldout_table(probe.metadata.metrics), heldout_table(probe.metadata.metrics, "replies"))
    probe.save(out / "probe")


def _print_samples(replies: Sequence[Reply], console: Console) -> None:
    """The first test question: unsteered, and under K-Steering towards every target."""
    question = replies[0].job.question
    console.print(f"\n[bold]{question}[/bold]")
    for reply in replies:
        tags = reply.job.tags
        if reply.job.question == question and tags["method"] in (None, "gradient"):
            name = " + ".join(tags["target"]) or METHOD_NAMES[None]
            console.print(f"  [cyan]{name}[/cyan]: {reply.text}", highlight=False)
    console.print()


def _write_results(
    out: Path,
    plan: DemoPlan,
    calibration: Calibration,
    table: Sequence[Row],
    claims: Sequence[Claim],
    seconds: dict[str, float],
) -> None:
    metadata = Probe.load_metadata(out / "probe")
    results: dict[str, Any] = {
        "plan": plan.model_dump(),
        "probe_digest": metadata.digest,
        "probe_training": metadata.training,
        "probe_metrics": metadata.metrics,
        "rule": RULE,
        "calibration": calibration.as_json(),
        "rows": [row.as_json() for row in table],
        "claims": [asdict(claim) for claim in claims],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")


def _print_next_steps(out: Path, question: str, seconds: float, console: Console) -> None:
    body = {
        "model": str(out / "model"),
        "messages": prompt_messages(question),
        "ksteer": {"probe": _SERVED_AS, "target": ["casual"]},
    }
    model, probe = shlex.quote(str(out / "model")), shlex.quote(f"{_SERVED_AS}={out / 'probe'}")
    console.print(f"all figures: {out / 'results.json'} ({seconds:.0f} s)\nserve it:\n")
    for line in (
        f"  vllm serve {model} --plugin ksteer --ksteer-probe {probe} --gpu-memory-utilization 0.3",
        "  curl -s http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"    -d {shlex.quote(json.dumps(body))}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
