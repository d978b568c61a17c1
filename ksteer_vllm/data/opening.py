"""What DATA on a command line means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.files import READABLE, remedy_for
from ksteer_vllm.data.predefined import BUNDLED, PREDEFINED, STYLED, bundled_task, styled_task
from ksteer_vllm.data.tables import Columns
from ksteer_vllm.errors import DataError, UsageError, listing

__all__ = ["open_task"]

HUB = "hub:"


def open_task(
    data: str | Path,
    *,
    labels: Sequence[str] = (),
    questions: str | Path | None = None,
    max_questions: int | None = None,
    chat: bool = False,
    split: str | None = None,
    columns: Columns | None = None,
    encoding: str | None = None,
) -> TaskDataset:
    """Open labelled text by its name.

    Args:
        data: A predefined task, `hub:owner/name`, or a file of a kind in `data.files.READABLE`.
        labels: The labels to use; for a table with a column for each label, its label columns.
        questions, max_questions: Of `tones` and `debates`, see `styled_task`.
        chat: Whether plain-text prompts are user messages.
        split: Which split of a dataset on the hub; default: train.
        columns: Names of a table's columns.
        encoding: Of a text file; default: UTF-8, or what its first bytes say.

    Raises:
        DataError: For data that cannot be read.
        UsageError: For an option that does not go with the data.
    """
    name = str(data)
    if name not in STYLED and (questions is not None or max_questions is not None):
        raise UsageError(f"questions: only the tasks {listing(STYLED)} take them, not {name[:80]!r}")
    if encoding is not None and Path(name).suffix.lower() not in READABLE:
        raise UsageError(f"encoding: only files have one, not {name[:80]!r}")
    if split is not None and not name.startswith(HUB):
        raise UsageError(f"split: only data of the hub has splits (hub:owner/name), not {name[:80]!r}")
    if columns is not None and name in PREDEFINED:
        raise UsageError(f"columns: {name!r} is not a table; leave them out")
    if name in STYLED:
        return styled_task(name, questions=questions, max_questions=max_questions, labels=labels)
    if name in BUNDLED:
        return bundled_task(name, labels=labels)
    columns = columns or Columns()
    if labels:
        columns = columns.model_copy(update={"labels": tuple(labels)})
    if name.startswith(HUB):
        return TaskDataset.from_hub(name.removeprefix(HUB), columns, split=split or "train", chat=chat)
    suffix = Path(name).suffix.lower()
    if suffix in READABLE:
        return TaskDataset.from_file(name, columns, chat=chat, encoding=encoding)
    raise DataError(
        f"data: {name[:120]!r} is not a file that can be read ({', '.join(READABLE)}), a predefined task "
        f"({listing(PREDEFINED)}) or a data set on the hub (hub:owner/name){remedy_for(suffix)}"
    )
