"""What a table's cells say, and columns that are not what their place makes them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ksteer_vllm.errors import DataError, listing

__all__ = [
    "check_column_of_replies",
    "check_label_column",
    "check_taken_for_labels",
    "is_missing",
    "truth_of",
]

_TRUTH: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_FEWEST: Final = 10
"""Cells below which nothing is concluded from a column."""
_WORDS_OF_A_NAME: Final = 3
_TEXT_TO_READ: Final = {
    "article", "body", "comment", "comments", "content", "context", "description", "document",
    "explanation", "input", "instruction", "message", "note", "notes", "passage", "prompt", "query",
    "question", "source", "summary", "text", "title", "url",
}  # fmt: skip
"""What columns are called that say something about a row, and are no label of it."""


def truth_of(cell: Any) -> bool | None:
    """True or false, or None for a cell that says neither."""
    if isinstance(cell, str):
        return _TRUTH.get(cell.strip().lower())
    if isinstance(cell, bool) or type(cell).__name__ in ("bool_", "bool"):
        return bool(cell)
    if isinstance(cell, int | float) and cell in (0, 1):
        return bool(cell)
    return None


def is_missing(cell: Any) -> bool:
    """Whether there is nothing in a cell: None, NaN, or a text of blanks."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or type(cell).__name__ == "NAType" or cell != cell  # noqa: PLR0124


def check_label_column(where: str, name: str, cells: Sequence[Any]) -> None:
    """Raise DataError for a column of labels that says something else in most rows."""
    said = [str(cell).strip() for cell in cells if not is_missing(cell)]
    distinct = len(set(said))
    if len(said) >= _FEWEST and 2 * distinct > len(said):
        raise DataError(
            f"{where}, column {name!r}: {distinct} different values in {len(said)} rows ({said[0][:60]!r}, "
            "...) name no labels; name the column that does (--label-column)"
        )


def check_taken_for_labels(where: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise DataError for texts that nobody called a label's replies, and that are hardly meant as such.

    Args:
        where: What messages call the table, which has no column of replies.
        columns: All that would be labels, with their cells.
    """
    for name, cells in columns.items():
        said = [cell for cell in cells if isinstance(cell, str) and truth_of(cell) is None]
        if said and (name.strip().lower() in _TEXT_TO_READ or len(columns) == 1):
            typed = shlex.quote(name)
            raise DataError(
                f"{where}, column {name!r}: its texts ({said[0].strip()[:40]!r}, ...) would be read as "
                f"replies that show a label {name!r}; if it is a label, name all (--labels {typed},OTHER); "
                f"if it holds replies, say --reply-column {typed}; else drop it (--ignore-columns {typed})"
            )


def check_column_of_replies(where: str, name: str, cells: Sequence[Any]) -> None:
    """Raise DataError for a column that nobody called a label, and whose texts are hardly its replies.

    A column of true and false, or of cells that are not texts, passes: others look at those.
    """
    said = [cell.strip() for cell in cells if isinstance(cell, str) and truth_of(cell) is None]
    typed = shlex.quote(name)
    if len(said) < max(_FEWEST, len(cells)):
        return
    few = sorted(set(said))
    if 2 * len(few) <= len(said) and all(len(text.split()) <= _WORDS_OF_A_NAME for text in few):
        raise DataError(
            f"{where}, column {name!r}: the same few values over and over ({listing(few, 4)}); if they name "
            f"each row's label, say --label-column {typed}; else --ignore-columns {typed}"
        )
    if all(len(text.split()) <= 1 for text in said):
        raise DataError(
            f"{where}, column {name!r}: single words ({said[0][:40]!r}, ...), so no replies that show a "
            f"label; leave it out (--ignore-columns {typed}), or name the columns of labels (--labels a,b)"
        )
