"""A task: labelled rows, whatever they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ksteer_vllm.data.halves import PROMPT_PARTS, Partition, partition_rows
from ksteer_vllm.data.rows import LabelledRow, Prompt, data_digest, labels_of, row_number
from ksteer_vllm.data.tables import Columns, rows_of_records
from ksteer_vllm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TaskDataset"]


@dataclass(frozen=True)
class TaskDataset:
    """Labelled rows and what belongs to them.

    Attributes:
        name: In messages and write-ups.
        labels: K names, in the order a fit takes them.
        rows: In the order of the data, each with its number.
        prompts: `calibration` and `evaluation` prompts that the task brings; if empty, they are taken from
            the rows.
        judge: The one that suits the data, by its name in `ksteer_vllm.bench.judges`.
    """

    name: str
    labels: tuple[str, ...]
    rows: tuple[LabelledRow, ...]
    prompts: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)
    judge: str = "probe"

    @classmethod
    def of(
        cls,
        name: str,
        rows: Sequence[LabelledRow],
        *,
        labels: Sequence[str] = (),
        prompts: Mapping[str, Sequence[Prompt]] | None = None,
        judge: str = "probe",
    ) -> TaskDataset:
        """A task of these rows, numbered in their order where they have no number.

        Args:
            name: As the attribute, like all arguments not listed here.
            rows: At least one.
            labels: The labels to take; empty: all, sorted.

        Raises:
            DataError: If there are no rows, if a label is in none or in all of them, or if only one kind of
                prompts is given.
        """
        if not rows:
            raise DataError(f"{name}: no rows")
        chosen = labels_of(rows, labels)
        for label in chosen:
            if all(label in row.labels for row in rows):
                raise DataError(
                    f"labels: every row of {name} shows {label!r}, so nothing tells it from other text; "
                    "add rows that show other labels, or none"
                )
        given = {part: tuple(found) for part, found in (prompts or {}).items()}
        if given and (set(given) != set(PROMPT_PARTS) or not all(given.values())):
            raise DataError(f"prompts: give some for each of {', '.join(PROMPT_PARTS)}, or none at all")
        numbered = (row.numbered(row_number(row, index)) for index, row in enumerate(rows))
        return cls(name, chosen, tuple(numbered), given, judge)

    @property
    def digest(self) -> str:
        """SHA-256 of the rows in their order."""
        return data_digest(self.rows)

    def partition(self, seed: int = 0) -> Partition:
        """Half of the conversations for the methods, half for the probe that evaluates them, and prompts.

        Args:
            seed: Seed of the split into halves; see `partition_rows`.

        Raises:
            DataError: If there are too few rows of a label.
        """
        return partition_rows(self.rows, self.labels, self.prompts, seed)

    @classmethod
    def from_pandas(
        cls,
        frame: pd.DataFrame,
        *,
        prompt: str | None = None,
        labels: Sequence[str] = (),
        text: str | None = None,
        label: str | None = None,
        reply: str | None = None,
        system: str | None = None,
        chat: bool = False,
        name: str = "data",
        judge: str = "probe",
    ) -> TaskDataset:
        """A table of prompts and labels.

        Args:
            frame: One row each.
            prompt, labels, text, label, reply, system: Names of its columns, see
                `ksteer_vllm.data.tables.Columns`.
            chat: Whether `prompt` or `text` holds user messages, to go through the model's chat
                template.
            name, judge: As the attributes.

        Raises:
            DataError: For a table that cannot be read so, naming row and column.
        """
        repeated = frame.columns[frame.columns.duplicated()]
        if len(repeated):
            raise DataError(f"{name}: column {str(repeated[0])!r} is there twice; rename or drop one")
        columns = Columns(
            prompt=prompt, text=text, label=label, labels=tuple(labels), reply=reply, system=system
        )
        records = [{str(key): cell for key, cell in row.items()} for row in frame.to_dict("records")]
        rows = rows_of_records(records, columns, where=name, chat=chat)
        return cls.of(name, rows, labels=labels, judge=judge)

    @classmethod
    def from_csv(
        cls, path: str | Path, columns: Columns | None = None, *, chat: bool = False, judge: str = "probe"
    ) -> TaskDataset:
        """A CSV file with a header; arguments as of `from_pandas`.

        Raises:
            DataError: Naming file, row (the header is not counted) and column.
        """
        from ksteer_vllm.data.files import csv_records

        columns = columns or Columns()
        rows = rows_of_records(csv_records(path), columns, where=str(path), chat=chat)
        return cls.of(Path(path).name, rows, labels=columns.labels, judge=judge)

    @classmethod
    def from_json(
        cls, path: str | Path, columns: Columns | None = None, *, chat: bool = False, judge: str = "probe"
    ) -> TaskDataset:
        """JSON Lines, or one JSON list, of rows (`LabelledRow`), contrast pairs, or a table's records.

        Arguments are those of `from_pandas`.

        Raises:
            DataError: Naming the file, the line or row, and the field.
        """
        from ksteer_vllm.data.files import json_rows

        columns = columns or Columns()
        rows = json_rows(Path(path), columns, chat=chat)
        return cls.of(Path(path).name, rows, labels=columns.labels, judge=judge)

    @classmethod
    def from_hub(
        cls,
        name: str,
        columns: Columns | None = None,
        *,
        split: str = "train",
        chat: bool = False,
        judge: str = "probe",
    ) -> TaskDataset:
        """A data set of the Hugging Face hub, or a local folder `datasets` can load.

        Args:
            name: owner/name, or the folder.
            split: Of the data set.
            columns, chat, judge: As of `from_pandas`.

        Raises:
            DataError: If it cannot be loaded or read.
            UsageError: Without the package `datasets`.
        """
        from ksteer_vllm.data.hub import hub_records

        columns = columns or Columns()
        rows = rows_of_records(hub_records(name, split), columns, where=name, chat=chat)
        return cls.of(name, rows, labels=columns.labels, judge=judge)
