"""The feature matrix of matrix.toml as Markdown, which `python -m docs.generate` puts into its page."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parents[3]


class Row(BaseModel):
    """One feature. tests: "FILE::FUNCTION" from the project's root; note: what to know, or empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: Annotated[str, Field(min_length=1)]
    outcome: Literal["works", "refused", "unit only"]
    tests: Annotated[tuple[str, ...], Field(min_length=1)]
    note: str = ""


def rows() -> list[Row]:
    """The rows of matrix.toml, in order."""
    text = (Path(__file__).with_name("matrix.toml")).read_text()
    return [Row.model_validate(row) for row in tomllib.loads(text)["row"]]


def table() -> str:
    """A Markdown table of three columns, ending in a newline. Of a row's tests it names the first."""
    lines = ["| feature | outcome | test |", "|---|---|---|"]
    for row in rows():
        outcome = f"{row.outcome}: {row.note}" if row.note else row.outcome
        tests = f"`{row.tests[0]}`" + (f" and {more} more" if (more := len(row.tests) - 1) else "")
        lines.append(f"| {row.feature} | {outcome} | {tests} |")
    return "\n".join(lines) + "\n"
