"""What `ksteer eval` does: open, run, write, print."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ksteer_vllm.bench.combinations import combinations, size_name
from ksteer_vllm.bench.judges import ENDPOINT, described
from ksteer_vllm.bench.suite import EVALUATION, Suite
from ksteer_vllm.bench.variants import variants_for
from ksteer_vllm.experiments.calibration.record import Calibration
from ksteer_vllm.experiments.evaluation.metrics import MEASURES
from ksteer_vllm.experiments.evaluation.outcome import Evaluation
from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan
from ksteer_vllm.experiments.evaluation.run import evaluate_suite
from ksteer_vllm.experiments.evaluation.strengths import calibrated_settings, chosen_variants, planned
from ksteer_vllm.experiments.evaluation.writeup import headline, size_table, write_up

__all__ = ["RESULTS", "run_evaluation"]

RESULTS = "results"
"""The folder, within the suite's."""

_SHOWN = ("on_target", "success", "coherent", "nll", "shift", "kl", "prompt_tokens")


def run_evaluation(folder: Path, plan: EvaluationPlan, console: Console) -> Evaluation:
    """Evaluate a calibrated suite and leave the write-up in SUITE/results.

    An interrupted run resumes with the replies that SUITE/results holds.

    Args:
        folder: The suite, calibrated by `ksteer calibrate`.
        plan: What to evaluate; what it leaves open is taken from the calibration.
        console: Where progress and tables are printed.

    Returns:
        Everything the write-up is made from.

    Raises:
        UsageError: For a folder that is not a calibrated suite, a probe that was fitted again since the
            calibration, or a plan that does not fit the suite.
    """
    suite = Suite.open(folder)
    calibration = Calibration.load(folder)
    calibration.check(_digests(suite))
    combinations(suite.file.labels, plan.sizes if "sizes" in plan.model_fields_set else ())
    plan = planned(plan, calibration)
    settings, without = calibrated_settings(_variants(suite, calibration, plan), calibration, plan)
    gone = [v.name for v in calibration.variants if v.probe not in suite.paths]
    without += [f"{name} (its probe is gone)" for name in gone]
    results = folder / RESULTS
    options = _judge_options(suite, plan, results)
    found = evaluate_suite(
        suite,
        settings,
        plan.model_copy(update={"judge_options": options}),
        results,
        rule=calibration.coherence,
        together=calibration.best_variant(),
        console=console,
    )
    found.without = without
    path = write_up(found, results)
    _print(found, console)
    console.print(f"results: {path}")
    return found


def _variants(suite: Suite, calibration: Calibration, plan: EvaluationPlan) -> list[Any]:
    """The calibrated variants, then the suite's others: the random control needs no calibration of its own,
    and the rest are reported as left out."""
    calibrated = [variant for variant in calibration.variants if variant.probe in suite.paths]
    known = {variant.name for variant in calibrated}
    there_are = variants_for({name: probe.metadata for name, probe in suite.probes.items()})
    others = [variant for variant in there_are if variant.name not in known]
    return chosen_variants([*calibrated, *others], plan.variants)


def _digests(suite: Suite) -> dict[str, str]:
    read = {EVALUATION: suite.evaluation} if suite.evaluation is not None else {}
    return {name: probe.metadata.digest for name, probe in {**suite.probes, **read}.items()}


def _judge_options(suite: Suite, plan: EvaluationPlan, results: Path) -> dict[str, Any]:
    """An endpoint's verdicts are kept beside the replies, and it is told what a known task's labels mean."""
    if (plan.judge or suite.file.judge) != ENDPOINT:
        return plan.judge_options
    descriptions = described(suite.file.task, suite.file.labels)
    return {"journal": results / "verdicts.jsonl", "descriptions": descriptions, **plan.judge_options}


def _print(found: Evaluation, console: Console) -> None:
    table = size_table(found)
    names = {**MEASURES, "shift": "displace-\nment", "kl": "KL, nats", "prompt_tokens": "prompt\ntokens"}
    shown = Table(title="each variant at its own calibrated strength", title_justify="left", box=SIMPLE_HEAD)
    shown.add_column("labels")
    shown.add_column("variant", no_wrap=True)
    for column in ("alpha", *_SHOWN):
        shown.add_column(names.get(column, column), justify="right")
    previous = 0
    for row in table.to_dict("records"):
        size = int(row["size"])
        if previous and size != previous:
            shown.add_section()
        figures = [_figure(row["alpha"], ".3g"), *(_figure(row[column], _form(column)) for column in _SHOWN)]
        shown.add_row(str(size) if size != previous else "", row["variant"], *figures)
        previous = size
    console.print(shown)
    for comparison, by_size in headline(found).items():
        for size, lines in by_size.items():
            if lines:
                console.print(f"[bold]{size_name(size)}, {comparison}[/bold]")
                for line in lines:
                    console.print(f"  {line}", highlight=False)


def _form(column: str) -> str:
    return ".0f" if column == "prompt_tokens" else ".2f"


def _figure(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"
