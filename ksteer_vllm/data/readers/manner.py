"""How a text speaks: like a pirate, in the first or second person, in exclamations, questions or capitals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ksteer_vllm.data.readers.words import repetitive, sentences_of, share_of, words_of

__all__ = [
    "CAPITALS",
    "EMOJI",
    "EXCLAMATIONS",
    "FIRST_PERSON",
    "LOWER_CASE",
    "PIRATE",
    "QUESTIONS",
    "SECOND_PERSON",
    "Capitals",
    "Emoji",
    "Exclamations",
    "LowerCase",
    "OnlyQuestions",
    "Person",
    "Pirate",
]

_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*$")


_PIRATE_WORDS = frozenset(
    [
        *("ahoy", "argh", "arr", "avast", "aye", "bucko", "buckos", "doubloon", "doubloons", "grog"),
        *("hearties", "hearty", "landlubber", "landlubbers", "matey", "mateys", "plunder", "savvy"),
        *("scallywag", "scallywags", "scurvy", "swashbuckler", "swashbuckling", "thar", "timbers"),
        *("yarr", "ye", "yer", "yerself", "yo-ho", "yo-ho-ho"),
    ]
)
_PIRATE_TURNS = (
    r"\bshiver (?:me|my) timbers\b",
    r"\bme (?:bones|crew|friends?|heart|hearty|hearties|lads?|life|mates?|own|ship|treasure)\b",
    r"\b(?:i|it|that|there|they|we|you) be\b",
    r"\b\w{2,}in['’](?!\w)",
    r"\byo[ -]ho\b",
    r"\bdavy jones\b",
)


@dataclass(frozen=True)
class Pirate:
    """A word of pirate talk and another, or a turn of phrase; the sea alone (ship, captain) is not enough."""

    least: int = 2

    def shows(self, text: str) -> bool:
        words = [re.sub(r"^(a)r{2,}g*h*$", r"\1rr", word) for word in words_of(text)]
        if repetitive(words):
            return False
        lower = text.lower()
        named = set(words) & _PIRATE_WORDS
        turns = [turn for turn in _PIRATE_TURNS if re.search(turn, lower)]
        return bool(named) and len(named) + len(turns) >= self.least


@dataclass(frozen=True)
class Person:
    """At least three pronouns of a person, one of them a subject, and one word in sixteen."""

    pronouns: frozenset[str]
    subjects: frozenset[str]
    least: int = 3
    least_share: float = 1 / 16

    def shows(self, text: str) -> bool:
        words = words_of(text)
        count = sum(word in self.pronouns for word in words)
        return (
            count >= self.least
            and share_of(words, self.pronouns) >= self.least_share
            and share_of(words, self.subjects) > 0
            and not repetitive(words)
        )


@dataclass(frozen=True)
class Exclamations:
    """At least two different sentences end with an exclamation mark, and at least half of those that end."""

    least: int = 2
    least_share: float = 0.5

    def shows(self, text: str) -> bool:
        ended = [sentence for sentence in sentences_of(text) if _END.search(sentence)]
        loud = [sentence for sentence in ended if "!" in _mark(sentence)]
        return (
            len({" ".join(words_of(sentence)) for sentence in loud}) >= self.least
            and len(loud) >= self.least_share * len(ended)
            and not repetitive(words_of(text))
        )


@dataclass(frozen=True)
class OnlyQuestions:
    """Every sentence is a question, no two the same.

    A last sentence without an end mark is left out of account if two whole questions stand before it: there
    the reply was cut off.
    """

    shortest: int = 3

    def shows(self, text: str) -> bool:
        sentences = sentences_of(text)
        whole = [sentence for sentence in sentences if _END.search(sentence)]
        cut_off = len(sentences) - len(whole)
        if not whole or cut_off > 1 or (cut_off and (whole[-1] is sentences[-1] or len(whole) < 2)):
            return False
        asked = [words_of(sentence) for sentence in whole]
        return (
            all("?" in _mark(sentence) for sentence in whole)
            and len({tuple(words) for words in asked}) == len(asked)
            and any(len(words) >= self.shortest for words in asked)
            and not repetitive(words_of(text))
        )


@dataclass(frozen=True)
class Capitals:
    """At least nine letters in ten are capitals, in four different words or more."""

    least_share: float = 0.9

    def shows(self, text: str) -> bool:
        letters = [letter for letter in text if letter.lower() != letter.upper()]
        capitals = sum(map(str.isupper, letters))
        return _says_enough(text) and capitals >= max(4, self.least_share * len(letters))


@dataclass(frozen=True)
class LowerCase:
    """No capital letter, in four different words or more."""

    def shows(self, text: str) -> bool:
        return _says_enough(text) and any(map(str.islower, text)) and not any(map(str.isupper, text))


@dataclass(frozen=True)
class Emoji:
    """At least one emoji beside words, and no more emojis than words."""

    pattern: str = "[\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55\u231a\u231b]"

    def shows(self, text: str) -> bool:
        count = len(re.findall(self.pattern, text))
        return 0 < count <= len(words_of(text)) and _says_enough(text)


def _says_enough(text: str, least: int = 4) -> bool:
    words = words_of(text)
    return len(set(words)) >= least and not repetitive(words)


def _mark(sentence: str) -> str:
    found = _END.search(sentence)
    return found[0] if found else ""


def _forms(text: str) -> frozenset[str]:
    return frozenset(text.split())


_I: Final = "i i'm i've i'd i'll"
_YOU: Final = "you you're you've you'd you'll"
PIRATE: Final = Pirate()
FIRST_PERSON: Final = Person(_forms(f"{_I} me my mine myself"), _forms(_I))
SECOND_PERSON: Final = Person(_forms(f"{_YOU} your yours yourself"), _forms(_YOU))
EXCLAMATIONS: Final = Exclamations()
QUESTIONS: Final = OnlyQuestions()
CAPITALS: Final = Capitals()
LOWER_CASE: Final = LowerCase()
EMOJI: Final = Emoji()
