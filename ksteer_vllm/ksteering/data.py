"""What `KSteering.fit` may be given, as labelled rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.opening import open_task
from ksteer_vllm.data.rows import LabelledRow, Message, Prompt
from ksteer_vllm.data.split import without_instruction
from ksteer_vllm.errors import DataError, first_problem, listing

__all__ = [
    "Labelled",
    "dataset_rows",
    "given_prompts",
    "plain_prompt",
    "plain_row",
    "questions_of",
    "sampled",
    "task_rows",
]

PIP_TONES: Final = ("casual", "cautious", "concise", "empathetic", "expert")
"""The tones of k-steering 0.1.2: its wheel has no "helpful"."""

Labelled = tuple[list[LabelledRow], tuple[str, ...]]
"""Rows, and their labels in the order of a classifier's logits."""


def task_rows(
    task: str, labels: Sequence[str], *, questions: str | Path | None = None, as_pip: bool = False
) -> Labelled:
    """Rows of a predefined task. as_pip: the package's labels, sorted, without rows that show none."""
    data = open_task(task, labels=labels, questions=questions)
    chosen = data.labels
    if as_pip:
        chosen = PIP_TONES if task == "tones" and not labels else tuple(sorted(chosen))
    return [row for row in data.rows if set(row.labels) & set(chosen)], chosen


def dataset_rows(dataset: Any, labels: Sequence[str], *, chat: bool) -> Labelled:
    """Rows of a TaskDataset, a file, a DataFrame or a list of rows. Raises DataError.

    Rows: `LabelledRow`, or {"text" or "prompt", "label"}, as the package takes them; chat: whether
    their texts are user messages.
    """
    if isinstance(dataset, str | Path):
        dataset = open_task(dataset, labels=labels, chat=chat)
    elif hasattr(dataset, "to_dict") and hasattr(dataset, "columns"):
        dataset = TaskDataset.from_pandas(dataset, labels=labels, chat=chat)
    elif not isinstance(dataset, TaskDataset):
        rows = [_row(item, number, chat) for number, item in enumerate(dataset, start=1)]
        dataset = TaskDataset.of("dataset", rows, labels=labels)
    return list(dataset.rows), tuple(labels) or dataset.labels


def _row(item: Any, number: int, chat: bool) -> LabelledRow:
    if isinstance(item, LabelledRow):
        return item
    if not isinstance(item, Mapping):
        raise DataError(f"row {number}: expected a LabelledRow or a mapping, got {type(item).__name__}")
    if "labels" in item:
        try:
            return LabelledRow.model_validate(dict(item))
        except ValidationError as error:
            raise DataError(f"row {number}: {first_problem(error)}") from None
    text, label = (_text(item, number, *names) for names in (("prompt", "text"), ("label",)))
    prompt: Prompt = (Message(role="user", content=text),) if chat else text
    return LabelledRow(prompt=prompt, labels=(label,))


def _text(item: Mapping[str, Any], number: int, *names: str) -> str:
    """The first of these fields. Raises DataError if none is a text."""
    found = next((item[name] for name in names if name in item), None)
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"row {number}: {' or '.join(names)}: empty or missing; it has: {listing(item)}")
    return found


def given_prompts(given: str | Sequence[Any], *, chat: bool) -> list[Prompt]:
    """Prompts from one text or several prompts: a text as it is, or with `chat` as a user message; a list of
    messages as a chat."""
    found: list[Prompt] = []
    for prompt in [given] if isinstance(given, str) else given:
        if not isinstance(prompt, str):
            found.append(tuple(Message.model_validate(message) for message in prompt))
        else:
            found.append((Message(role="user", content=prompt),) if chat else prompt)
    return found


def sampled(rows: list[LabelledRow], count: int | None) -> list[LabelledRow]:
    """At most `count` of the rows, drawn as the package draws them; None: all."""
    return rows if count is None else random.Random(42).sample(rows, min(count, len(rows)))


def plain_prompt(prompt: Any) -> str:
    """A chat as one text, one message below the other: for models without a chat template, and as the
    package does it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(Message.model_validate(message).content for message in prompt)


def plain_row(row: LabelledRow) -> LabelledRow:
    """The row with a plain prompt."""
    return row.model_copy(update={"prompt": plain_prompt(row.prompt)})


def questions_of(rows: Sequence[LabelledRow]) -> list[Prompt]:
    """The distinct prompts, without instructions."""
    return list(dict.fromkeys(without_instruction(row).prompt for row in rows))
