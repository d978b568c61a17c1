"""The tasks that have a name: `tones`, `debates` and `demo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.rows import LabelledRow, Message
from ksteer_vllm.data.styles import DEBATES, TONES
from ksteer_vllm.errors import DataError, listing

__all__ = ["BUNDLED", "PREDEFINED", "STYLED", "Questions", "bundled_task", "styled_task"]

_QUESTION_COLUMNS = ("text", "question", "prompt")


@dataclass(frozen=True)
class Questions:
    """Questions on the hub, under any of these names, and the styles in which they are to be answered."""

    hub: tuple[str, ...]
    styles: Mapping[str, str]


STYLED: Final = {
    "tones": Questions(("Narmeen07/tone_agnostic_questions", "withmartian/TONEBANK"), TONES),
    "debates": Questions(("Narmeen07/debate_style_agnostic_questions", "withmartian/DEBATEMIX"), DEBATES),
}
BUNDLED: Final = {"demo": "ksteer_vllm.demo.task:demo_task"}
"""name -> module:function of a task that brings its own rows; imported when it is opened."""

PREDEFINED: Final = (*STYLED, *BUNDLED)


def styled_task(
    name: str,
    *,
    questions: str | Path | None = None,
    max_questions: int | None = None,
    labels: Sequence[str] = (),
) -> TaskDataset:
    """`tones` or `debates`: every question once under each style's instruction, a system message; no replies.

    Args:
        name: The task's.
        questions: A file with a column text, question or prompt; None: from the hub.
        max_questions: Use only this many, from the first.
        labels: The styles to take; default: all.

    Raises:
        DataError: If no questions can be loaded; the message says how to continue without the hub.
    """
    task = STYLED[name]
    found = _from_hub(name, task.hub) if questions is None else _from_file(Path(questions))
    rows = [
        LabelledRow(
            prompt=(Message(role="system", content=instruction), Message(role="user", content=question)),
            labels=(label,),
        ).numbered(number)
        for question, number in list(found.items())[:max_questions]
        for label, instruction in task.styles.items()
    ]
    asked = {label: (instruction,) for label, instruction in task.styles.items()}
    return TaskDataset.of(name, rows, labels=labels or tuple(task.styles), instructions=asked)


def bundled_task(name: str, *, labels: Sequence[str] = ()) -> TaskDataset:
    """The task that BUNDLED has under this name; labels: those to take, default: all."""
    task: TaskDataset = resolve_name(BUNDLED[name])(labels=labels)
    return task


def _from_file(path: Path) -> dict[str, int]:
    from ksteer_vllm.data.files import file_records

    return _questions(file_records(path), str(path))


def _from_hub(task: str, names: Sequence[str]) -> dict[str, int]:
    from ksteer_vllm.data import hub

    problems = []
    for name in names:
        try:
            return _questions(hub.hub_records(name), name)
        except hub.HubError as error:
            problems.append(error.reason)
    raise DataError(
        f"{task}: {problems[0]}; without the hub, give the questions as a file with a column text: "
        "--questions FILE"
    )


def _questions(records: Sequence[Mapping[str, Any]], where: str) -> dict[str, int]:
    """The distinct questions, each with the number of the first row that asks it."""
    if not records:
        raise DataError(f"{where}: no rows")
    column = next((name for name in _QUESTION_COLUMNS if name in records[0]), None)
    if column is None:
        raise DataError(f"{where}: no column {listing(_QUESTION_COLUMNS)}; it has: {listing(records[0])}")
    found: dict[str, int] = {}
    for number, record in enumerate(records, start=1):
        cell = record.get(column)
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{where}, row {number}, column {column!r}: empty, or not a text; drop the row")
        found.setdefault(cell.strip(), number)
    return found
