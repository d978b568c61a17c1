"""What the model is steered towards: behaviours whose presence in a text code can decide.

Each has the one instruction that a small instruct model was seen to follow best among a few phrasings, on the
questions that probes are fitted to. The instruction is the baseline everyone has (`prompted`), and writes the
replies that probes are fitted to; what counts is the reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from ksteer_vllm.data.readers import Reader, broken, reader_of
from ksteer_vllm.data.rows import Message

__all__ = ["BEHAVIOURS", "PAIRS", "SEVEN", "Behaviour", "asked", "plain", "shows"]


@dataclass(frozen=True)
class Behaviour:
    """One behaviour.

    Attributes:
        instruction: What asks for it.
        first: Whether the instruction comes before the question; otherwise it follows.
        check: The description of its reader, see `ksteer_vllm.data.readers.reader_of`.
        kind: Behaviours of one kind contradict each other: a reply has one language, one layout, one opening.
    """

    instruction: str
    first: bool
    check: str | Mapping[str, Any]
    kind: str

    @cached_property
    def reader(self) -> Reader:
        """Says whether a text shows the behaviour."""
        return reader_of(self.check)


BEHAVIOURS: dict[str, Behaviour] = {
    "french": Behaviour("Answer in French.", False, "french", "language"),
    "spanish": Behaviour("Answer in Spanish.", False, "spanish", "language"),
    "pirate": Behaviour(
        "You are a pirate captain. Say ahoy, arr, matey and ye.", True, "pirate", "vocabulary"
    ),
    "first person": Behaviour(
        "Tell me about yourself: how do you do it? Say I and my.", True, "first person", "person"
    ),
    "numbered list": Behaviour("List the steps, numbered: 1. 2. 3.", True, "numbered list", "layout"),
    "exclamations": Behaviour(
        "Hooray! You are thrilled! Answer in short shouts: Yes! Great! Do it now!",
        False,
        "exclamations",
        "sentences",
    ),
    "only questions": Behaviour(
        "Do not answer. Ask me three questions about it instead.", False, "only questions", "sentences"
    ),
    "german": Behaviour("Answer in German.", True, "german", "language"),
    "italian": Behaviour("Answer in Italian.", True, "italian", "language"),
    "story": Behaviour(
        "Tell a story. Begin with: Once upon a time", False, {"starts with": "Once upon a time"}, "opening"
    ),
    "letter": Behaviour(
        "Write it as a letter that begins with Dear friend,", True, {"starts with": "Dear"}, "opening"
    ),
    "bullet list": Behaviour(
        "Make a list of short bullet points, each on a line that starts with -.",
        False,
        "bullet list",
        "layout",
    ),
}
"""By the name that is their label."""

SEVEN = (
    "french", "spanish", "pirate", "first person", "numbered list", "exclamations", "only questions",
)  # fmt: skip
"""The singles that the goals of the project are stated for."""

ENGLISH = frozenset({"vocabulary", "person", "opening"})
"""Kinds whose readers look for English words."""


def _agree(one: str, other: str) -> bool:
    """Whether one reply can show behaviours of these two kinds."""
    kinds = {one, other}
    if len(kinds) == 1 or ("language" in kinds and kinds & ENGLISH):
        return False
    return "opening" not in kinds or not kinds & {"layout"}


PAIRS: tuple[tuple[str, str], ...] = tuple(
    (one, other)
    for one, other in combinations(BEHAVIOURS, 2)
    if _agree(BEHAVIOURS[one].kind, BEHAVIOURS[other].kind)
    and not ("only questions" in (one, other) and {"story", "letter"} & {one, other})
)
"""Pairs that do not contradict each other: a list has no opening, and `Once upon a time` asks nothing."""


def plain(question: str) -> tuple[Message, ...]:
    """The question alone."""
    return (Message(role="user", content=question),)


def asked(names: tuple[str, ...], question: str) -> tuple[Message, ...]:
    """The question with the instructions of these behaviours."""
    before = [BEHAVIOURS[name].instruction for name in names if BEHAVIOURS[name].first]
    after = [BEHAVIOURS[name].instruction for name in names if not BEHAVIOURS[name].first]
    return plain(" ".join([*before, question, *after]))


def shows(names: tuple[str, ...], text: str) -> bool:
    """Whether a reply shows all of these behaviours, and is not broken."""
    return not broken(text) and all(BEHAVIOURS[name].reader.shows(text) for name in names)
