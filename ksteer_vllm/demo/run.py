"""`ksteer demo`: from labelled text to steered replies, with the model that comes with the package."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ksteer_vllm.bench.engines import stop_engine
from ksteer_vllm.data.rows import write_rows
from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.demo.calibrate import METHODS, RULE, Calibration, calibrate
from ksteer_vllm.demo.corpus import held_out_questions, prompt_messages
from ksteer_vllm.demo.generate import (
    ENGINE_OPTIONS,
    PROBE_NAME,
    TEMPERATURE,
    Ask,
    Method,
    Reply,
    demo_engine,
    generate_replies,
)
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.results import (
    METHOD_NAMES,
    Claim,
    Row,
    calibration_table,
    check_claims,
    results_table,
    summarise,
)
from ksteer_vllm.demo.task import labelled_text
from ksteer_vllm.fit.heldout import heldout_table
from ksteer_vllm.fit.pipeline import fit_probe_to_rows
from ksteer_vllm.fit.train import FitPlan
from ksteer_vllm.probes.probe import Probe

__all__ = ["DemoPlan", "run_demo"]

COMBINATIONS: tuple[tuple[str, ...], ...] = (
    *((tone,) for tone in TONES),
    ("expert", "empathetic"),
    ("casual", "cautious"),
    ("helpful", "cautious", "empathetic"),
)


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of one run; rows: of the labelled text."""

    rows: int = 1500
    layer: int = 2
    epochs: int = 12
    noise: float = 1.0
    calibration_questions: int = 20
    test_questions: int = 100
    seed: int = 0


def run_demo(out: Path, plan: DemoPlan | None = None, *, model: Path = MODEL_DIR, console: Console) -> bool:
    """Fill `out` with model, data.jsonl, probe and results.json, and print what steering does.

    Returns whether every acceptance line holds.
    """
    plan = plan or DemoPlan()
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, out / "model", dirs_exist_ok=True)
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
    fitted = time.perf_counter()
    probe.save(out / "probe")
    llm = demo_engine(out / "model", out / "probe")
    try:
        questions = held_out_questions("calibration")[: plan.calibration_questions]
        with console.status(f"calibrating on {len(questions)} questions"):
            calibrations = calibrate(llm, probe, questions, seed=plan.seed)
        alphas: dict[Method, float] = {found.method: found.alpha for found in calibrations}
        console.print(f"rule: {RULE}", calibration_table(calibrations))
        calibrated = time.perf_counter()
        with console.status("answering the test questions, all rows in one batch"):
            replies = generate_replies(llm, final_asks(plan, alphas), seed=plan.seed)
    finally:
        stop_engine(llm)
    probe = probe.with_metadata(default_alpha=alphas)
    probe.save(out / "probe")
    table = summarise(replies)
    claims = check_claims(table)
    seconds = {
        "fit": fitted - started,
        "calibrate": calibrated - fitted,
        "generate": time.perf_counter() - calibrated,
        "total": time.perf_counter() - started,
    }
    _print_samples(replies, console)
    console.print(results_table(table))
    for claim in claims:
        console.print(f"{'holds' if claim.holds else 'MISSED'}: {claim.text}")
    _write_results(out, plan, probe, calibrations, table, claims, seconds)
    _print_next_steps(out, replies[0].ask.question.text, seconds["total"], console)
    return all(claim.holds for claim in claims)


def final_asks(plan: DemoPlan, alphas: dict[Method, float]) -> list[Ask]:
    """Every row of the final table on the same test questions."""
    questions = held_out_questions("test")[: plan.test_questions]
    asks = [Ask(question) for question in questions]
    for target in COMBINATIONS:
        for method in METHODS:
            asks += [Ask(question, target, method, alphas[method]) for question in questions]
    return asks


def _print_samples(replies: Sequence[Reply], console: Console) -> None:
    """The first test question: unsteered, and under K-Steering towards every target."""
    question = replies[0].ask.question
    console.print(f"\n[bold]{question.text}[/bold]")
    for reply in replies:
        if reply.ask.question == question and reply.ask.method in (None, "gradient"):
            name = " + ".join(reply.ask.target) or METHOD_NAMES[None]
            console.print(f"  [cyan]{name}[/cyan]: {reply.text}", highlight=False)
    console.print()


def _write_results(
    out: Path,
    plan: DemoPlan,
    probe: Probe,
    calibrations: Sequence[Calibration],
    table: Sequence[Row],
    claims: Sequence[Claim],
    seconds: dict[str, float],
) -> None:
    results: dict[str, Any] = {
        "plan": asdict(plan),
        "temperature": TEMPERATURE,
        "probe_digest": Probe.load_metadata(out / "probe").digest,
        "probe_training": probe.metadata.training,
        "probe_metrics": probe.metadata.metrics,
        "rule": RULE,
        "calibration": [calibration.as_json() for calibration in calibrations],
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
        "ksteer": {"probe": PROBE_NAME, "target": ["casual"]},
    }
    model, probe = shlex.quote(str(out / "model")), shlex.quote(f"{PROBE_NAME}={out / 'probe'}")
    console.print(f"all figures: {out / 'results.json'} ({seconds:.0f} s)\nserve it:\n")
    for line in (
        f"  vllm serve {model} --plugin ksteer --ksteer-probe {probe} --gpu-memory-utilization 0.3",
        "  curl -s http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"    -d {shlex.quote(json.dumps(body))}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
