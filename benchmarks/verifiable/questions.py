"""The questions that are measured on: everyday ones of no particular manner, none of which a fit is given.

Settings are chosen on one half and reported on the other; which is which follows from the questions' digests,
so the split is the same everywhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["QUESTIONS", "choosing", "read_questions", "reporting"]

QUESTIONS = Path(__file__).with_name("questions.txt")


def read_questions(file: Path = QUESTIONS) -> tuple[str, ...]:
    """The questions of a file, one a line."""
    return tuple(file.read_text(encoding="utf-8").splitlines())


def choosing() -> tuple[str, ...]:
    """The half on which layers, strengths and windows are chosen, in the file's order."""
    first = _first_half()
    return tuple(question for question in read_questions() if question in first)


def reporting() -> tuple[str, ...]:
    """The half on which everything is reported, in the file's order."""
    first = _first_half()
    return tuple(question for question in read_questions() if question not in first)


def _first_half() -> set[str]:
    shuffled = sorted(read_questions(), key=lambda question: hashlib.sha256(question.encode()).digest())
    return set(shuffled[: len(shuffled) // 2])
