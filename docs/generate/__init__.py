"""The generated parts of the documentation: `python -m docs.generate` brings all of them up to date.

A page holds a generated part between two marks, `<!-- generated: NAME -->` and `<!-- /generated -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from docs.generate.command_line import commands, server_flags
from docs.generate.methods import methods
from docs.generate.python_api import python_api
from docs.generate.spec import fields
from docs.generate.support import matrix

__all__ = ["PARTS", "pages", "stale", "write"]

FOLDER = Path(__file__).resolve().parents[1]

PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "matrix": matrix,
    "methods": methods,
    "python-api": python_api,
    "server-flags": server_flags,
    "spec": fields,
}
"""Name of a generated part -> what makes its Markdown."""

_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with generated parts, and its text as it should be."""
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if _PART.search(text):
            yield page, _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", text)


def stale() -> list[str]:
    """Names of the pages whose generated parts are out of date."""
    return [page.name for page, text in pages() if page.read_text(encoding="utf-8") != text]


def write() -> list[str]:
    """Bring every page up to date; the names of those that changed."""
    changed = stale()
    for page, text in pages():
        page.write_text(text, encoding="utf-8")
    return changed
