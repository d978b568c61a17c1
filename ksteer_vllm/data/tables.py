"""Labelled rows from a table: a prompt column and either one column per label or one that names the label."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from ksteer_vllm.data.cells import (
    check_column_of_replies,
    check_label_column,
    check_taken_for_labels,
    is_missing,
    truth_of,
)
from ksteer_vllm.data.rows import LabelledRow, Message, Prompt, rows_of_line
from ksteer_vllm.errors import DataError, choices, listing

__all__ = ["Columns", "as_chat", "as_row", "is_row_form", "rows_of_records", "unused_columns"]

_PAIR: Final = ("positive", "negative", "label")
REPLY_NAMES: Final = ("reply", "response", "completion", "answer", "output")
"""What a column of replies is usually called; a reply that is there is never written again by the model."""


class Columns(BaseModel):
    """Which column of a table holds what. Columns that are not named are found by their usual names, however
    these are capitalised.

    Attributes:
        prompt: The prompt; default: `prompt`, or else `text`.
        text: The same by another name, for tables of text and label; give one of the two.
        reply: The reply; default: `reply`, `response`, `completion`, `answer` or `output`, if there is one.
        system: An instruction, which makes the prompt a chat; default: `system`, if there is one.
        label: Names the one label of a row; default: `label`, if there is one.
        labels: With a label column, the labels to take. Without, the columns that stand for a label each;
            default: all other columns. They hold true or false (1 or 0, yes or no), or, in a table without
            replies, a reply that shows the label: then a row of the table gives one labelled row for each
            label.
        ignore: Columns to leave out, as if they were not there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str | None = None
    text: str | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    reply: str | None = None
    system: str | None = None
    ignore: tuple[str, ...] = ()


def is_row_form(records: Sequence[Mapping[str, Any]], columns: Columns) -> bool:
    """Whether these are `LabelledRow`s and contrast pairs rather than a table.

    A pair has texts under positive, negative and label; where a column is named, they are a table's.
    """
    tabular = columns.model_copy(update={"labels": (), "ignore": ()}) != Columns()
    return any(
        isinstance(record.get("labels"), list)
        or (not tabular and all(isinstance(record.get(name), str) for name in _PAIR))
        for record in records
    )


def rows_of_records(
    records: Sequence[Mapping[str, Any]], columns: Columns, *, where: str, chat: bool = False
) -> list[LabelledRow]:
    """The labelled rows of a table.

    Args:
        records: The table's rows, column -> cell, all with the same columns.
        columns: Which column holds what.
        where: What messages call the table.
        chat: Whether plain-text prompts are user messages.

    Raises:
        DataError: For a cell or column that does not fit, naming row (counted from 1) and column.
    """
    if not records:
        raise DataError(f"{where}: no rows")
    records = _without_ignored(records, columns, where)
    if is_row_form(records, columns):
        return [
            (as_chat(row) if chat else row).numbered(number)
            for number, record in enumerate(records, start=1)
            for row in _row_form(as_row(record, columns), f"{where}, row {number}")
        ]
    return _Table(records, columns, where, chat).rows()


def unused_columns(records: Sequence[Mapping[str, Any]], columns: Columns, *, where: str) -> tuple[str, ...]:
    """The columns of a table that `rows_of_records` does not read. Arguments and errors are its own.

    Columns of true and false that `columns.labels` passes over are chosen against, not unused.
    """
    records = _without_ignored(records, columns, where)
    if is_row_form(records, columns):
        return ()
    return _Table(records, columns, where, chat=False).unused()


def _without_ignored(
    records: Sequence[Mapping[str, Any]], columns: Columns, where: str
) -> Sequence[Mapping[str, Any]]:
    if not columns.ignore:
        return records
    names = dict.fromkeys(name for record in records for name in record)
    if absent := [name for name in columns.ignore if name not in names]:
        raise DataError(f"{where}: no column {absent[0]!r} to ignore; it has: {choices(absent[0], names)}")
    return [{name: cell for name, cell in record.items() if name not in columns.ignore} for record in records]


def as_chat(row: LabelledRow) -> LabelledRow:
    """The row, its prompt a chat: a text becomes the user's message."""
    if not isinstance(row.prompt, str):
        return row
    return row.model_copy(update={"prompt": (Message(role="user", content=row.prompt),)})


def as_row(record: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
    """A record in row form by the names `LabelledRow` has for its prompt and its reply.

    The same object where it has them already; a field that may mean two things keeps its name.
    """
    usual = [name for name in REPLY_NAMES if name in record]
    found = {
        "prompt": columns.prompt or columns.text or ("prompt" if "prompt" in record else "text"),
        "reply": columns.reply or (usual[0] if len(usual) == 1 else None),
    }
    names = {own: name for name, own in found.items() if own in record and own != name}
    if not names or not names.keys().isdisjoint(found):
        return record
    return {names.get(name, name): cell for name, cell in record.items()}


def _row_form(record: Mapping[str, Any], where: str) -> list[LabelledRow]:
    try:
        return rows_of_line(json.dumps(record, ensure_ascii=False))
    except (DataError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None


class _Table:
    """One table being read."""

    def __init__(
        self, records: Sequence[Mapping[str, Any]], columns: Columns, where: str, chat: bool
    ) -> None:
        self.records, self.where, self.chat = records, where, chat
        self.names = list(dict.fromkeys(name for record in records for name in record))
        self.labels: list[str] = []
        if columns.prompt is not None and columns.text is not None:
            raise DataError(f"{where}: prompt and text are one column by two names; give one of them")
        self.prompt = self._named(columns.prompt or columns.text) or self._prompt_column()
        self.reply = self._named(columns.reply) or self._usual_reply(columns)
        self.system = self._named(columns.system) or self._usual("system", columns)
        self.label = self._named(columns.label) or self._usual("label", columns)
        if self.label is not None:
            check_label_column(self.where, self.label, self._column(self.label))
            return
        self.labels = [self._required(name) for name in columns.labels] or self._others()
        for name in () if columns.labels else self.labels:
            check_column_of_replies(self.where, name, self._column(name))
        if self.reply is None and not columns.labels:
            check_taken_for_labels(self.where, {name: self._column(name) for name in self.labels})

    def unused(self) -> tuple[str, ...]:
        """Columns that are read as nothing."""
        read = {self.prompt, self.reply, self.system, self.label, *self.labels}
        rest = [name for name in self.names if name not in read]
        if self.label is None:
            rest = [name for name in rest if any(truth_of(cell) is None for cell in self._column(name))]
        return tuple(rest)

    def rows(self) -> list[LabelledRow]:
        if self.label is not None:
            return [
                self._row(number, (self._label(number),), self._reply(number)) for number in self._numbers
            ]
        truth = [[truth_of(record.get(name)) for name in self.labels] for record in self.records]
        texts = sum(cell is None for row in truth for cell in row)
        if not texts:
            return [
                self._row(number, tuple(n for n, shown in zip(self.labels, row, strict=True) if shown),
                          self._reply(number))
                for number, row in enumerate(truth, start=1)
            ]  # fmt: skip
        if self.reply is not None or texts < len(truth) * len(self.labels):
            self._refuse_cell(truth, texts)
        return [
            self._row(number, (name,), self._text(number, name))
            for number in self._numbers
            for name in self.labels
        ]

    @property
    def _options(self) -> dict[str | None, str]:
        """What names a column on the command line."""
        return {
            self.prompt: "--prompt-column",
            self.reply: "--reply-column",
            self.label: "--label-column",
        }

    @property
    def _numbers(self) -> range:
        return range(1, len(self.records) + 1)

    def _row(self, number: int, labels: tuple[str, ...], reply: str | None) -> LabelledRow:
        return LabelledRow(prompt=self._prompt(number), reply=reply, labels=labels).numbered(number)

    def _prompt(self, number: int) -> Prompt:
        cell = self.records[number - 1].get(self.prompt)
        if isinstance(cell, list | tuple):
            (row,) = _row_form({"prompt": list(cell), "labels": []}, f"{self.where}, row {number}")
            return row.prompt
        text = self._text(number, self.prompt)
        system = [Message(role="system", content=self._text(number, self.system))] if self.system else []
        if not system and not self.chat:
            return text
        return (*system, Message(role="user", content=text))

    def _reply(self, number: int) -> str | None:
        return None if self.reply is None else self._text(number, self.reply)

    def _label(self, number: int) -> str:
        cell = self.records[number - 1].get(self.label or "")
        if isinstance(cell, int):
            return str(cell)
        return self._text(number, self.label or "").strip()

    def _text(self, number: int, column: str) -> str:
        cell = self.records[number - 1].get(column)
        place = f"{self.where}, row {number}, column {column!r}"
        if is_missing(cell):
            raise DataError(f"{place}: empty; fill it in, or drop the row")
        if not isinstance(cell, str):
            option = self._options.get(column)
            remedy = f"name another column ({option})" if option else "write a text, or drop the column"
            raise DataError(f"{place}: expected a text, got {str(cell)[:80]!r}; {remedy}")
        return cell

    def _named(self, name: str | None) -> str | None:
        return None if name is None else self._required(name)

    def _required(self, name: str) -> str:
        if name not in self.names:
            raise DataError(f"{self.where}: no column {name!r}; it has: {choices(name, self.names)}")
        return name

    def _column(self, name: str) -> list[Any]:
        return [record.get(name) for record in self.records]

    def _prompt_column(self) -> str:
        for name in ("prompt", "text"):
            if (found := self._called(name)) is not None:
                return found
        raise DataError(
            f"{self.where}: no column 'prompt' or 'text'; it has: {listing(self.names)}; name the column "
            "that holds the prompts (--prompt-column)"
        )

    def _called(self, name: str) -> str | None:
        """The column of that name, exactly or else but for capitals."""
        if name in self.names:
            return name
        return next((found for found in self.names if found.lower() == name), None)

    def _usual(self, name: str, columns: Columns) -> str | None:
        """The column of that usual name, unless it was named as something else."""
        found = self._called(name)
        return None if found in {self.prompt, *columns.labels} else found

    def _usual_reply(self, columns: Columns) -> str | None:
        """The column of replies by one of its usual names. Raises DataError for several."""
        found = [own for name in REPLY_NAMES if (own := self._usual(name, columns))]
        if len(found) > 1:
            raise DataError(
                f"{self.where}: columns {listing(found)} may each hold the replies; name the one that does "
                "(--reply-column)"
            )
        return found[0] if found else None

    def _others(self) -> list[str]:
        rest = [name for name in self.names if name not in {self.prompt, self.reply, self.system}]
        if not rest:
            raise DataError(
                f"{self.where}: no column for labels; it has: {listing(self.names)}; add a column 'label', "
                "name the one that says it (--label-column), or add one of true and false for each label"
            )
        return rest

    def _refuse_cell(self, truth: Sequence[Sequence[bool | None]], texts: int) -> None:
        """Raise DataError for the first cell of the rarer kind; where there are replies, of any text."""
        cells = len(truth) * len(self.labels)
        odd_is_text = self.reply is not None or 2 * texts <= cells
        number, name = next(
            (number, name)
            for number, row in enumerate(truth, start=1)
            for name, cell in zip(self.labels, row, strict=True)
            if (cell is None) is odd_is_text
        )
        got = self.records[number - 1].get(name)
        what = "empty" if is_missing(got) else f"got {str(got)[:80]!r}"
        allowed = "true or false (1 or 0, yes or no) in every row"
        if self.reply is None:
            allowed += ", or in every row a reply that shows the label"
        typed = shlex.quote(name)
        own = f"--label-column {typed} if it names the label, "
        if self.reply is None:
            own = f"--reply-column {typed} if it holds the replies, {own}"
        raise DataError(
            f"{self.where}, row {number}, column {name!r}: {what}; a label's column holds {allowed}; if this "
            f"is not a label's column, drop it, or name those that are (--labels a,b): {own}"
            f"--ignore-columns {typed} if it is none of these"
        )
