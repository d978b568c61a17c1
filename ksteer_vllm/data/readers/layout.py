"""How a text is laid out: lists, a heading, JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ksteer_vllm.data.readers.words import words_of

__all__ = ["BulletList", "Heading", "Json", "NumberedList"]

_NUMBERED = re.compile(r"^\s*[*_]{0,2}(\d{1,3})[.)][*_]{0,2}\s+(.*\w.*)$", re.MULTILINE)
_BULLET = re.compile(r"^\s*[-*•–+]\s+(.*\w.*)$", re.MULTILINE)
_HEADING = re.compile(r"\s*(?:#{1,6}\s+\w.*|\*\*[^*\n]*\w[^*\n]*\*\*:?|[^\n]*\w[^\n]*\n[=-]{3,})\s*(?:\n|$)")
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class NumberedList:
    """At least two lines, numbered one after the other, that say different things."""

    least: int = 2

    def shows(self, text: str) -> bool:
        items = [(int(number), item) for number, item in _NUMBERED.findall(text)]
        run: list[tuple[int, str]] = []
        best = 0
        for number, item in items:
            run = [*run, (number, item)] if run and number == run[-1][0] + 1 else [(number, item)]
            best = max(best, len({tuple(words_of(said)) for _, said in run}))
        return best >= self.least


@dataclass(frozen=True)
class BulletList:
    """At least two lines that begin with a bullet (-, *, +, •) and say different things."""

    least: int = 2

    def shows(self, text: str) -> bool:
        items = {tuple(words_of(item)) for item in _BULLET.findall(text)}
        return len(items) >= self.least


@dataclass(frozen=True)
class Heading:
    """The first line is a heading, as Markdown writes them (# ..., **...**, or underlined); text follows."""

    def shows(self, text: str) -> bool:
        found = _HEADING.match(text)
        return found is not None and bool(words_of(text[found.end() :]))


@dataclass(frozen=True)
class Json:
    """The whole text, or the code block it consists of, is one JSON object or list that holds something."""

    def shows(self, text: str) -> bool:
        fenced = _FENCE.fullmatch(text)
        try:
            found = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict | list) and bool(found)
