"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["sentence", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are on one line each, with `|` escaped."""
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def sentence(text: str | None) -> str:
    """A description as it stands in a table: on one line, beginning with a capital letter."""
    words = " ".join((text or "").split())
    return words[:1].upper() + words[1:]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
