"""CSV, JSON and JSON Lines files as records, column -> cell, or as labelled rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksteer_vllm.data.rows import LabelledRow, read_rows
from ksteer_vllm.data.tables import Columns, as_chat, is_row_form, rows_of_records
from ksteer_vllm.errors import DataError

__all__ = ["csv_records", "json_records", "json_rows"]

_LONGEST_CELL = 1 << 24


def csv_records(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file under its header; blank lines are skipped, cells are kept as they are.

    Args:
        path: The file, with a header.

    Raises:
        DataError: For a file that cannot be read, a column that is there twice, or a row of another length.
    """
    csv.field_size_limit(_LONGEST_CELL)
    lines = io.StringIO(_text(Path(path), newline=""), newline="")
    try:
        header, *rows = [row for row in csv.reader(lines, strict=True) if row] or [[]]
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV: {error}") from None
    if not header:
        raise DataError(f"{path}: no rows")
    _no_duplicates(header, str(path))
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {number}: {len(row)} cells for the {len(header)} columns of the header; put "
                "quotation marks around a cell with a comma"
            )
    return [dict(zip(header, row, strict=True)) for row in rows]


def json_records(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, or of a .json file with one list. Raises DataError."""
    path = Path(path)
    text = _text(path)
    if path.suffix.lower() == ".json":
        found = _parsed(text, str(path))
        if not isinstance(found, list):
            raise DataError(f"{path}: expected a list of objects, got {type(found).__name__}")
        places = [f"{path}, row {number}" for number in range(1, len(found) + 1)]
    else:
        lines = {n: line for n, line in enumerate(text.split("\n"), start=1) if line.strip()}
        places = [f"{path}, line {number}" for number in lines]
        found = [_parsed(line, place) for line, place in zip(lines.values(), places, strict=True)]
    for record, place in zip(found, places, strict=True):
        if not isinstance(record, dict):
            raise DataError(f"{place}: expected an object, got {type(record).__name__}")
    return found


def json_rows(path: Path, columns: Columns, *, chat: bool = False) -> list[LabelledRow]:
    """Rows, contrast pairs, or a table's records, from a .json or .jsonl file. Raises DataError."""
    records = json_records(path)
    if path.suffix.lower() == ".jsonl" and is_row_form(records, columns):
        rows = read_rows(path)
        return [as_chat(row) for row in rows] if chat else rows
    return rows_of_records(records, columns, where=str(path), chat=chat)


def _text(path: Path, newline: str | None = None) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _parsed(text: str, where: str) -> Any:
    def checked(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        _no_duplicates([name for name, _ in pairs], where)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=checked)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None


def _no_duplicates(names: Sequence[str], where: str) -> None:
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise DataError(f"{where}: column {twice!r} is there twice; rename or drop one")
