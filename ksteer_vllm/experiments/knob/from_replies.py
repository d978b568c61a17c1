"""A knob from labelled replies: nothing is written but what calibrates it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.data.behaviours import shipped_questions
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.data.split import without_instruction
from ksteer_vllm.errors import DataError
from ksteer_vllm.experiments.knob.checks import ByReader
from ksteer_vllm.experiments.knob.command import KnobRequest, Prepared, complete
from ksteer_vllm.experiments.knob.plan import KnobPlan
from ksteer_vllm.experiments.knob.prompts import PromptForm
from ksteer_vllm.experiments.knob.questions import FEWEST, QuestionParts
from ksteer_vllm.experiments.knob.selection import Counts, Selection
from ksteer_vllm.experiments.knob.separable import separate
from ksteer_vllm.experiments.knob.written import Asked, Written
from ksteer_vllm.fit.progress import progress_bar
from ksteer_vllm.probes.probe import Probe

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset

__all__ = ["knob_from_replies"]


def knob_from_replies(request: KnobRequest, dataset: TaskDataset, console: Console) -> Probe:
    """Make a calibrated probe from labelled replies. After an interruption it resumes with what it has.

    Who judges the steered replies is a bag of words, fitted to the labelled ones; a label that it cannot tell
    from the rest on held-out prompts is left out, as nothing could be said of it.

    Args:
        request: What to make.
        dataset: The labelled replies.
        console: Where everything is told.

    Returns:
        The probe in `request.out`; without a strength if nothing steers.

    Raises:
        DataError: For rows without a reply, and if no label can be told from the rest.
        UsageError: For a plan that does not suit the model.
    """
    missing = sum(row.reply is None for row in dataset.rows)
    if missing:
        raise DataError(
            f"{dataset.name}: {missing} of {len(dataset.rows)} rows have no reply; --calibrate needs them "
            "all, or describe what you want in words (--behaviours)"
        )
    form = request.form()
    rows = [without_instruction(row) for row in dataset.rows]
    prompts = _Prompts(form, rows)
    selection = _selection(rows, dataset.labels)
    parts = _parts(prompts, request.plan)
    fitted = [
        row.model_copy(update={"prompt": prompts.plain(question)})
        for row, question in zip(rows, map(_question, rows), strict=True)
        if question in set(parts.fit)
    ]
    held_out = "of the data" if parts.calibration[0] in prompts.texts else "that come with the package"
    console.print(
        f"{len(rows)} replies with {len(selection.checks)} labels; {len(fitted)} to fit to; "
        f"{len(parts.calibration)} questions {held_out} to choose a strength on, {len(parts.report)} to "
        f"report on; prompts go {form.name}",
        highlight=False,
    )
    with progress_bar(console) as progress:
        return complete(request, Prepared(prompts, selection, fitted, parts, {}), console, progress)


class _Prompts:
    """The prompts of the data, each under its question, and a form for questions that it does not ask."""

    def __init__(self, form: PromptForm, rows: Sequence[LabelledRow]) -> None:
        self._form = form
        self.texts: Mapping[str, str] = {
            _question(row): form.plain(row.prompt) if isinstance(row.prompt, str) else form.chat(row.prompt)
            for row in rows
        }

    def plain(self, question: str) -> str:
        return self.texts.get(question) or self._form.plain(question)

    def instructed(self, instruction: str, question: str) -> str:
        return self._form.instructed(instruction, question)

    def described(self) -> dict[str, Any]:
        return self._form.described()


def _question(row: LabelledRow) -> str:
    """What names a row's prompt: its text; of a chat, all that was said in it."""
    if isinstance(row.prompt, str):
        return row.prompt
    return Job(row.prompt).question if len(row.prompt) == 1 else "\n".join(one.content for one in row.prompt)


def _parts(prompts: _Prompts, plan: KnobPlan) -> QuestionParts:
    """Prompts of the data held out from the fit, if there are enough; otherwise the shipped questions."""
    own = list(prompts.texts)
    everything = plan.model_copy(update={"fit_questions": len(own)})
    if len(own) >= 2 * plan.held_out + 2 * FEWEST:
        return QuestionParts.of(own, everything)
    other = [question for question in shipped_questions() if question not in prompts.texts]
    parts = QuestionParts.of(other, plan)
    return QuestionParts(tuple(own), parts.calibration, parts.report)


def _selection(rows: Sequence[LabelledRow], labels: Sequence[str]) -> Selection:
    """Every reply with its labels; a check for every label that the words of the replies show."""
    found = Selection(counts={label: Counts() for label in labels})
    texts, questions = [row.spoken for row in rows], [_question(row) for row in rows]
    for label in labels:
        shown = [label in row.labels for row in rows]
        found.counts[label] = Counts(written=sum(shown), kept=sum(shown))
        told = separate(texts, shown, questions)
        if told is None or not told.separable:
            accuracy = "too few rows to tell" if told is None else f"balanced accuracy {told.accuracy}"
            found.left_out[label] = (
                f"its replies cannot be told from the others by their words ({accuracy}, on held-out "
                "prompts; 0.5 is chance), so nothing could say whether steering works"
            )
            continue
        found.checks[label] = ByReader(told.reader, "words")
        found.notes[label] = f"told from the rest by its words, balanced accuracy {told.accuracy}"
    if not found.checks:
        reasons = "; ".join(f"{name}: {why}" for name, why in found.left_out.items())
        raise DataError(f"labels: none can be calibrated: {reasons}")
    for index, row in enumerate(rows):
        names = frozenset(row.labels) & found.checks.keys()
        found.kept[Written(Asked(questions[index], None, index), row.spoken)] = names
    return found
