"""A task: labelled rows, whatever they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ksteer_vllm.data.halves import PROMPT_PARTS, Partition, partition_rows
from ksteer_vllm.data.rows import LabelledRow, Prompt, data_digest, labels_of, row_number
from ksteer_vllm.data.tables import Columns, rows_of_records, unused_columns
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
        unused: Columns of the table it was read from that are in none of this.
        instructions: Label -> what asks a model for it, in one or several wordings; labels may be missing.
    """

    name: str
    labels: tuple[str, ...]
    rows: tuple[LabelledRow, ...]
    prompts: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)
    judge: str = "probe"
    unused: tuple[str, ...] = ()
    instructions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        rows: Sequence[LabelledRow],
        *,
        labels: Sequence[str] = (),
        prompts: Mapping[str, Sequence[Prompt]] | None = None,
        judge: str = "probe",
        unused: Sequence[str] = (),
        instructions: Mapping[str, Sequence[str]] | None = None,
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
        asked = {label: tuple(words) for label, words in (instructions or {}).items()}
        return cls(name, chosen, tuple(numbered), given, judge, tuple(unused), asked)

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
        return cls.of(
            name, rows, labels=labels, judge=judge, unused=unused_columns(records, columns, where=name)
        )

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        columns: Columns | None = None,
        *,
        chat: bool = False,
        judge: str = "probe",
        encoding: str | None = None,
    ) -> TaskDataset:
        """A table (.csv, .tsv, .parquet), or JSON: rows (`LabelledRow`), contrast pairs, a table's records.

        Args:
            path: The file.
            encoding: Of a text file, as Python names it; None: UTF-8, or what its first bytes say.
            columns, chat, judge: As of `from_pandas`.

        Raises:
            DataError: Naming file, row (a header is not counted) or line, and column.
        """
        from ksteer_vllm.data.files import file_records, file_rows

        path, columns = Path(path), columns or Columns()
        records = file_records(path, encoding)
        rows = file_rows(path, records, columns, chat=chat, encoding=encoding)
        unused = unused_columns(records, columns, where=str(path))
        return cls.of(path.name, rows, labels=columns.labels, judge=judge, unused=unused)

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
        records = hub_records(name, split)
        rows = rows_of_records(records, columns, where=name, chat=chat)
        unused = unused_columns(records, columns, where=name)
        return cls.of(name, rows, labels=columns.labels, judge=judge, unused=unused)
