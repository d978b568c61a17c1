"""Labelled text: JSON Lines of prompt, reply and the labels the reply shows; or of contrast pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
)

from ksteer_vllm.data.text import read_text
from ksteer_vllm.errors import DataError, choices, listing

__all__ = [
    "ContrastPair",
    "LabelledRow",
    "Message",
    "Prompt",
    "data_digest",
    "labels_of",
    "read_rows",
    "row_name",
    "row_number",
    "rows_of_line",
    "write_rows",
]


class Message(BaseModel):
    """One message of a chat, in the form chat templates take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Annotated[str, Field(min_length=1)]
    content: str


def _some_prompt(prompt: str | tuple[Message, ...]) -> str | tuple[Message, ...]:
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError("empty")
    return prompt


def _some_text(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return text


Prompt = Annotated[str | tuple[Message, ...], AfterValidator(_some_prompt)]
Text = Annotated[str, AfterValidator(_some_text)]
Label = Annotated[str, Field(min_length=1)]


class LabelledRow(BaseModel):
    """One conversation: a prompt, the reply to it, and every label the reply shows (possibly none).

    `number` says which row of the data this was; copies keep it, but it is not compared, hashed or written.

    Attributes:
        prompt: A list of chat messages, which goes through the model's chat template, or a text, which is
            taken as it is.
        reply: None where there is none yet, see `ksteer_vllm.bench.replies`; the labels are then what the
            prompt asks for.
        labels: What the reply shows; a label that is not listed counts as not shown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Prompt
    reply: Text | None = None
    labels: tuple[Label, ...]
    _number: int | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelledRow) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((self.prompt, self.reply, self.labels))

    @property
    def number(self) -> int | None:
        """The row of the user's data this was read from, counted from 1; None if there is none."""
        return self._number

    def numbered(self, number: int) -> LabelledRow:
        """The same row with this number."""
        row = self.model_copy()
        row._number = number
        return row

    @property
    def spoken(self) -> str:
        """The reply. Raises DataError if there is none."""
        if self.reply is None:
            raise DataError("reply: missing; have replies generated, or add them to the data")
        return self.reply

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label is named twice")
        return labels


class ContrastPair(BaseModel):
    """Two replies to one prompt: `positive` shows the label, `negative` shows none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Prompt
    positive: Text
    negative: Text
    label: Label

    def rows(self) -> list[LabelledRow]:
        """The pair as labelled text: the positive reply, then the negative one."""
        return [
            LabelledRow(prompt=self.prompt, reply=self.positive, labels=(self.label,)),
            LabelledRow(prompt=self.prompt, reply=self.negative, labels=()),
        ]


def read_rows(path: str | Path, encoding: str | None = None) -> list[LabelledRow]:
    """The rows of a JSON Lines file; blank lines are skipped, and a contrast pair gives two rows.

    Lines end with a line feed; other separators, such as U+2028, are text.

    Args:
        path: The file.
        encoding: See `read_text`.

    Raises:
        DataError: Naming the file, the line and the field.
    """
    path = Path(path)
    lines = read_text(path, encoding).split("\n")
    rows: list[LabelledRow] = []
    filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    for count, (number, line) in enumerate(filled, start=1):
        try:
            rows += [row.numbered(count) for row in rows_of_line(line)]
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def write_rows(path: str | Path, rows: Iterable[LabelledRow]) -> Path:
    """Write rows in the form `read_rows` takes: JSON Lines.

    Args:
        path: The file, which is replaced.
        rows: The rows, in their order.

    Returns:
        The path.
    """
    path = Path(path)
    path.write_text("".join(_line(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row_number(row: LabelledRow, index: int) -> int:
    """The row's own number, or else its place in a list, `index` counted from 0."""
    return index + 1 if row.number is None else row.number


def row_name(row: LabelledRow, index: int) -> str:
    """What a message calls a row: `row 8`; index: see `row_number`."""
    return f"row {row_number(row, index)}"


def labels_of(rows: Sequence[LabelledRow], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The labels to fit.

    Args:
        rows: Labelled text.
        wanted: The labels to take, in this order; empty: every label of the data, sorted.

    Raises:
        DataError: If the data has no label, or a wanted one never occurs or is named twice.
    """
    found = sorted({label for row in rows for label in row.labels})
    if not wanted:
        if not found:
            raise DataError("labels: no row has a label")
        return tuple(found)
    absent = [label for label in wanted if label not in found]
    if absent:
        there_are = choices(absent[0], found, 100)
        raise DataError(f"labels: {listing(absent)} in no row; the data has: {there_are}")
    if len(set(wanted)) != len(wanted):
        raise DataError(f"labels: a label is named twice in {listing(wanted)}")
    return tuple(wanted)


def data_digest(rows: Iterable[LabelledRow]) -> str:
    """SHA-256 of the rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_line(row).encode() + b"\n")
    return digest.hexdigest()


def _line(row: LabelledRow) -> str:
    return json.dumps(row.model_dump(mode="json"), ensure_ascii=False)


def rows_of_line(line: str) -> list[LabelledRow]:
    """The row that a JSON text holds, or the two of its contrast pair.

    Args:
        line: One line of a file.

    Raises:
        DataError: For text that is not JSON, or not a row, naming the field.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}") from None
    pair = isinstance(found, dict) and not found.keys().isdisjoint(("positive", "negative"))
    kind: type[LabelledRow] | type[ContrastPair] = ContrastPair if pair else LabelledRow
    try:
        row = kind.model_validate_json(line)
    except ValidationError as error:
        raise DataError(_problem(error, kind)) from None
    return row.rows() if isinstance(row, ContrastPair) else [row]


def _problem(error: ValidationError, kind: Any) -> str:
    """The first problem pydantic found, as one phrase that names the field."""
    problems = error.errors(include_url=False)
    first = problems[0]
    field = first["loc"][0] if first["loc"] else None
    if first["type"] == "json_invalid":
        return f"not valid JSON: {first['ctx']['error']}"
    if field is None:
        wanted = "prompt, labels and, if there is one, reply, or with prompt, positive, negative and label"
        return f"expected an object with {wanted}, got {type(first['input']).__name__}"
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return f"{field}: required"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        allowed = choices(field, kind.model_fields)
        return f"{field}: unknown field; allowed: {allowed}; --ignore-columns {field} leaves it out"
    if field == "prompt" and first["type"] != "value_error":
        nested = next((p for p in problems if len(p["loc"]) > 2), None)
        where = f" (message {nested['loc'][2]}: {nested['msg']})" if nested else ""
        return f"prompt: expected a text or a list of messages with role and content{where}"
    return f"{field}: {first['msg'].removeprefix('Value error, ')} (got {str(first['input'])[:80]!r})"
