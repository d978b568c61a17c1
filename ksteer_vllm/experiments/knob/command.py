"""From labelled replies to a calibrated probe: what every way to make a knob ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from ksteer_vllm.bench.engines import model_of
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.knob.finish import FinishedKnob, finish
from ksteer_vllm.experiments.knob.fitting import aurocs, fit_knob
from ksteer_vllm.experiments.knob.heldout import try_out
from ksteer_vllm.experiments.knob.plan import KnobPlan
from ksteer_vllm.experiments.knob.prompts import Form, PromptForm, TemplateChoice
from ksteer_vllm.experiments.knob.questions import QuestionParts
from ksteer_vllm.experiments.knob.selection import Selection
from ksteer_vllm.experiments.knob.tables import auroc_table, selection_table
from ksteer_vllm.fit.linear_control import control_line
from ksteer_vllm.models import check_layers
from ksteer_vllm.probes.probe import Probe

__all__ = ["WORK", "KnobRequest", "Prepared", "complete"]

WORK: Final = "knob"
"""The folder, within the probe's, with replies, figures and what an interrupted run resumes from."""


@dataclass(frozen=True)
class KnobRequest:
    """A knob to make.

    Attributes:
        model: A folder, or a name on the hub.
        out: The probe folder to write.
        plan: Sizes, strengths, limits.
        choice: The form of the prompts.
        engine_options: Further arguments of `vllm.LLM`.
        served_as: The probe's name in the line to serve it with; empty: that of its folder.
    """

    model: str
    out: Path
    plan: KnobPlan = field(default_factory=KnobPlan)
    choice: TemplateChoice = field(default_factory=TemplateChoice)
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    served_as: str = ""

    @property
    def work(self) -> Path:
        """Where everything but the probe itself is kept."""
        return self.out / WORK

    def form(self) -> PromptForm:
        """The form of the prompts. Raises UsageError for a model that is not there, or lacks a layer."""
        from transformers import AutoTokenizer

        layers = model_of(self.model, self.engine_options).num_layers
        check_layers("layers", self.plan.layers_of(layers), layers, UsageError)
        source = {key: self.engine_options[key] for key in ("revision",) if key in self.engine_options}
        name = self.engine_options.get("tokenizer") or self.model
        return PromptForm(AutoTokenizer.from_pretrained(name, **source), self.choice)


@dataclass(frozen=True)
class Prepared:
    """Labelled text and held-out questions, wherever they are from.

    Attributes:
        form: The form of the prompts.
        selection: The replies that count, and the checks of the labels.
        rows: What the probe is fitted to.
        parts: The questions; those to fit to are in the rows.
        instructions: Label -> the phrasings that ask for it; empty where nobody wrote any.
    """

    form: Form
    selection: Selection
    rows: Sequence[LabelledRow]
    parts: QuestionParts
    instructions: Mapping[str, Sequence[str]]


def complete(request: KnobRequest, prepared: Prepared, console: Console, progress: Progress) -> Probe:
    """Fit the probe, choose its strength, report on questions kept apart, and save it.

    Args:
        request: What to make.
        prepared: The labelled text.
        console: Where everything is told.
        progress: Where progress is shown.

    Returns:
        The probe in `request.out`; without a strength if nothing steers.
    """
    selection = prepared.selection
    tell(selection, console)
    fitted = fit_knob(
        request.model,
        prepared.rows,
        list(selection.checks),
        request.plan,
        request.work,
        engine_options=request.engine_options,
        progress=progress,
    )
    probe = Probe.load(fitted)
    console.print(auroc_table(aurocs(probe)))
    if line := control_line(probe):
        noise = f"noise {request.plan.noise:g}"
        console.print(
            f"{line}: fitted through {noise}, it is to steer first and to read second", style="yellow"
        )
    found = try_out(
        request.model,
        fitted,
        prepared.form,
        prepared.rows,
        prepared.instructions,
        selection.checks,
        prepared.parts,
        request.plan,
        request.work,
        engine_options=request.engine_options,
        progress=progress,
    )
    return finish(
        FinishedKnob(request.model, probe, prepared.form, selection, found, request.plan),
        request.out,
        request.work,
        console,
        engine_options=request.engine_options,
        served_as=request.served_as,
    )


def tell(selection: Selection, console: Console) -> None:
    """Say which replies count, and why others do not."""
    console.print(selection_table(selection))
    for name, note in selection.notes.items():
        console.print(f"{name}: {note}", highlight=False)
    for name, why in selection.left_out.items():
        console.print(f"{name} is left out: {why}", style="yellow", highlight=False)
