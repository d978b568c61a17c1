"""Words and sentences of a text, and whether it is text at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["broken", "distinct_share", "repetitive", "sentences_of", "share_of", "words_of"]

FEWEST_WORDS: Final = 4
"""A reply of fewer words is broken."""
LEAST_DISTINCT: Final = 0.6
"""Share of a text's sequences of three words that must differ from each other."""

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*['’]?")
_SENTENCE = re.compile(r".*?[.!?…]+[\"'”’»)\]*_]*(?=\s|$)|.+$")
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|#{1,6}|\(?\d{1,3}[.)])\s+", re.MULTILINE)
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|approx|No|U\.S)\.$", re.IGNORECASE)


def words_of(text: str) -> list[str]:
    """The words, in lower case, with a straight apostrophe: `I’m` is `i'm`, `pleasin’` is `pleasin'`."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def sentences_of(text: str) -> list[str]:
    """The sentences, each with its end mark; a line break ends one, too, and marks of lists are left out.

    The last one may have no end mark: a reply can be cut off.
    """
    found: list[str] = []
    for line in _LIST_MARK.sub("", text).splitlines():
        unfinished = ""
        for piece in _SENTENCE.findall(line):
            joined = f"{unfinished} {piece.strip()}".strip()
            if _ABBREVIATION.search(joined):
                unfinished = joined
                continue
            unfinished = ""
            if words_of(joined):
                found.append(joined)
        if unfinished:
            found.append(unfinished)
    return found


def share_of(words: list[str], wanted: frozenset[str]) -> float:
    """Share of the words that are among the wanted ones; 0 without words."""
    return sum(word in wanted for word in words) / len(words) if words else 0.0


def distinct_share(words: Sequence[str], length: int) -> float:
    """Number of different sequences of `length` words over the number of sequences; 1 for fewer words."""
    sequences = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return len(set(sequences)) / len(sequences) if sequences else 1.0


def repetitive(words: list[str]) -> bool:
    """Whether fewer than LEAST_DISTINCT of the sequences of three words differ."""
    return distinct_share(words, 3) < LEAST_DISTINCT


def broken(text: str) -> bool:
    """Whether a reply is no text any more: under FEWEST_WORDS words, or repetitive.

    Words are counted as written in languages that put spaces between them; a text in one that does not, such
    as Chinese, is one word and counts as broken.
    """
    words = words_of(text)
    return len(words) < FEWEST_WORDS or repetitive(words)
