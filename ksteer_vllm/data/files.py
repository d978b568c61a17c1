"""Files as records, column -> cell, or as labelled rows: CSV, TSV, JSON, JSON Lines, Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ksteer_vllm.data.rows import LabelledRow, read_rows
from ksteer_vllm.data.tables import Columns, as_chat, as_row, is_row_form, rows_of_records
from ksteer_vllm.data.text import read_text
from ksteer_vllm.errors import DataError

__all__ = ["READABLE", "csv_records", "file_records", "file_rows", "json_records", "remedy_for"]

_LONGEST_CELL = 1 << 24
_SEPARATORS: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def file_records(path: str | Path, encoding: str | None = None) -> list[dict[str, Any]]:
    """The records of a file of any kind in READABLE, by its suffix.

    Args:
        path: The file.
        encoding: Of a text file, see `read_text`.

    Raises:
        DataError: For another kind of file, or one that cannot be read as its suffix says.
    """
    path = Path(path)
    reader = READABLE.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: not a file that can be read ({', '.join(READABLE)}){remedy_for(path.suffix.lower())}"
        )
    return reader(path, encoding)


def csv_records(path: str | Path, encoding: str | None = None) -> list[dict[str, Any]]:
    """The rows of a CSV file under its header; blank lines are skipped, cells are kept as they are.

    Cells are separated by what gives the header most cells: a comma, a semicolon, a tab or a bar.

    Args:
        path: The file, with a header.
        encoding: See `read_text`.

    Raises:
        DataError: For a file that cannot be read, a column that is there twice, or a row of another length.
    """
    csv.field_size_limit(_LONGEST_CELL)
    text = read_text(Path(path), encoding)
    try:
        separator = max(_SEPARATORS, key=lambda one: len(_header(text, one)))
        header, *rows = [row for row in _cells(text, separator) if row] or [[]]
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV: {error}") from None
    if not header:
        raise DataError(f"{path}: no rows")
    header = [name.strip() for name in header]
    _no_duplicates(header, str(path))
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {number}: {len(row)} cells for the {len(header)} columns of the header; put "
                f"quotation marks around a cell with a {_SEPARATORS[separator]}"
            )
    if not header[0] and [row[0] for row in rows] == [str(number) for number in range(len(rows))]:
        header, rows = header[1:], [row[1:] for row in rows]  # pandas' index, which nobody named
    return [dict(zip(header, row, strict=True)) for row in rows]


def json_records(path: str | Path, encoding: str | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, or of a .json file with one list. Raises DataError."""
    path = Path(path)
    text = read_text(path, encoding)
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


def file_rows(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    columns: Columns,
    *,
    chat: bool = False,
    encoding: str | None = None,
) -> list[LabelledRow]:
    """The rows that a file's records are: rows, contrast pairs, or a table's.

    Args:
        path: The file. Messages name the line of a JSON Lines file of rows, and otherwise the row.
        records: What `file_records` found in it.
        columns, chat, encoding: As of `TaskDataset.from_file`.

    Raises:
        DataError: For a row that does not fit.
    """
    lines = path.suffix.lower() in (".jsonl", ".ndjson") and not columns.ignore
    if lines and is_row_form(records, columns) and all(as_row(one, columns) is one for one in records):
        rows = read_rows(path, encoding)
        return [as_chat(row) for row in rows] if chat else rows
    return rows_of_records(records, columns, where=str(path), chat=chat)


def parquet_records(path: str | Path, encoding: str | None = None) -> list[dict[str, Any]]:
    """The rows of a Parquet file; encoding: not asked, Parquet says its own. Raises DataError."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow; or save it as .jsonl"
        ) from None
    try:
        with ParquetFile(path) as file:
            _no_duplicates(file.schema_arrow.names, str(path))
            named = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
            return list(file.read(named).to_pylist())
    except (OSError, ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        raise DataError(f"{path}: {reason}") from None


READABLE: Final[Mapping[str, Callable[[str | Path, str | None], list[dict[str, Any]]]]] = {
    ".jsonl": json_records,
    ".json": json_records,
    ".csv": csv_records,
    ".tsv": csv_records,
    ".ndjson": json_records,
    ".parquet": parquet_records,
}
"""suffix -> what reads such a file."""

_REMEDIES: Final = {
    (".xlsx", ".xls", ".ods", ".numbers"): "save the sheet as CSV (UTF-8)",
    (
        ".txt",
        ".md",
    ): "plain text says no labels: make a .csv of it, with a column prompt and one for the label",
    (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".7z"): "unpack it",
    (
        ".pkl",
        ".pickle",
        ".pt",
        ".npy",
        ".npz",
    ): "a file that may hold code is never loaded: save it as .parquet or .jsonl",
    (".arrow", ".feather"): "save it as .parquet",
    (".yaml", ".yml", ".xml", ".html", ".sqlite", ".db"): "export it as .jsonl or .csv",
}


def remedy_for(suffix: str) -> str:
    """What to do with a file of a kind that is not read, after a semicolon; empty for an unknown kind."""
    return next((f"; {remedy}" for kinds, remedy in _REMEDIES.items() if suffix in kinds), "")


def _header(text: str, separator: str) -> list[str]:
    """The first line that is not blank; empty if there is none, or it is not separated so."""
    try:
        return next(filter(None, _cells(text, separator)), [])
    except csv.Error:
        return []


def _cells(text: str, separator: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)


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
