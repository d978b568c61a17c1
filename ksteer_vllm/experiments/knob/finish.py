"""The end of making a knob: its strength written into the probe, its figures told, the line to serve it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.experiments.knob.fitting import aurocs
from ksteer_vllm.experiments.knob.heldout import Findings
from ksteer_vllm.experiments.knob.plan import RECIPE, KnobPlan, step_alpha
from ksteer_vllm.experiments.knob.prompts import Form
from ksteer_vllm.experiments.knob.selection import Selection
from ksteer_vllm.experiments.knob.serving import serving_lines
from ksteer_vllm.experiments.knob.tables import figure_table, strength_table
from ksteer_vllm.probes.probe import Probe

__all__ = ["FinishedKnob", "finish"]

_SHOWN: Final = 2
"""Steered replies that are shown of every behaviour: the first ones, whatever they are like."""


@dataclass(frozen=True)
class FinishedKnob:
    """Everything that is known of a knob when it is done. probe: without a strength."""

    model: str
    probe: Probe
    form: Form
    selection: Selection
    found: Findings
    plan: KnobPlan


def finish(
    finding: FinishedKnob,
    out: Path,
    folder: Path,
    console: Console,
    *,
    engine_options: Mapping[str, Any],
    served_as: str = "",
) -> Probe:
    """Save the probe, tell and write down what was found.

    Args:
        finding: What was found.
        out: The probe folder to write.
        folder: Where the write-up goes.
        console: Where it is told.
        engine_options: Arguments of `vllm.LLM` that the knob was made with.
        served_as: The probe's name in the line to serve it with; empty: that of its folder.

    Returns:
        The probe. It has a default edit if at least one behaviour is steered.
    """
    found, labels = finding.found, list(finding.probe.labels)
    console.print(strength_table(found.points, labels, found.chosen))
    if found.figures:
        console.print(figure_table(found.figures))
        _tell_replies(finding, console)
    probe = _with_default(finding)
    probe.save(out)
    path = _write_up(finding, folder)
    for sentence in _nothing_steers(found):
        console.print(sentence, style="yellow", highlight=False)
    console.print(f"figures: {path}", highlight=False)
    if found.steering:
        console.print(f"knob of {len(labels)} labels: {out}", highlight=False)
        lines = serving_lines(finding.model, out, found.steering[0], engine_options, served_as)
        for line in ("serve it:", *lines):
            console.print(line, highlight=False, soft_wrap=True)
    return probe


def _with_default(finding: FinishedKnob) -> Probe:
    """The probe with what it was made from, and with its edit if that steers."""
    probe, found = finding.probe, finding.found
    training = {**probe.metadata.training, "prompts": finding.form.described()}
    if not found.steering:
        return probe.with_metadata(training=training)
    alphas = {name: step_alpha(strength) for name, strength in found.chosen.items()}
    edit = {**RECIPE, "alpha": statistics.median_low(alphas.values())}
    own = {name: alpha for name, alpha in alphas.items() if alpha != edit["alpha"]}
    return probe.with_metadata(training=training, default_edit=edit, label_alpha=own)


def _nothing_steers(found: Findings) -> list[str]:
    """A sentence for every behaviour that is not steered, or one for all."""
    if not found.chosen:
        return ["nothing steers here: every strength breaks too many replies; try smaller ones (--strengths)"]
    broken = [
        f"nothing steers here: {name}: every strength breaks too many replies; try smaller ones (--strengths)"
        for name in found.points[0].shown
        if name not in found.chosen
    ]
    return broken + [
        f"nothing steers here: {name}: steered minus unsteered is {figures.gain}, not above 0 for certain"
        for name, figures in found.figures.items()
        if not figures.gain.steers
    ]


def _tell_replies(finding: FinishedKnob, console: Console) -> None:
    steered = finding.found.outcomes["steered"]
    for name in finding.probe.labels:
        own = [one for one in steered if one.asked.behaviour == name][:_SHOWN]
        for one in own:
            mark = "shows it" if one.success(name) else "does not show it"
            console.print(f"{name} ({mark}): {one.asked.question}", style="bold", highlight=False)
            console.print("  " + " ".join(one.reply.text.split()), highlight=False, markup=False)


def _write_up(finding: FinishedKnob, folder: Path) -> Path:
    """results.md and results.json, with every reply that the figures are of."""
    import pandas as pd

    found = finding.found
    writeup = WriteUp(folder, "A knob")
    counts = [{"behaviour": name, **vars(one)} for name, one in finding.selection.counts.items()]
    writeup.table(
        pd.DataFrame(counts), caption="Replies the probe was fitted to: those that show their label"
    )
    if found.figures:
        rows = [
            {
                "behaviour": name,
                **{row: str(share) for row, share in one.shares.items()},
                "gain": str(one.gain),
            }
            for name, one in found.figures.items()
        ]
        writeup.table(
            pd.DataFrame(rows), caption="Replies that show it and can be read, on questions kept apart"
        )
    for sentence in _nothing_steers(found):
        writeup.text(sentence)
    writeup.results = {
        "selection": {name: vars(one) for name, one in finding.selection.counts.items()},
        "left_out": finding.selection.left_out,
        "auroc": aurocs(finding.probe),
        "perplexity_limit": found.limit.perplexity,
        "strengths": [{**vars(point), "mean": point.mean} for point in found.points],
        "chosen": dict(found.chosen),
        "figures": {name: one.as_json() for name, one in found.figures.items()},
        "replies": {
            row: [
                {
                    "question": one.asked.question,
                    "behaviour": one.asked.behaviour,
                    "text": one.reply.text,
                    "shown": sorted(one.shown),
                    "readable": one.readable,
                }
                for one in outcomes
            ]
            for row, outcomes in found.outcomes.items()
        },
    }
    return writeup.write(model=finding.model, plan=finding.plan.model_dump(mode="json"))
