"""From a reader's description in YAML to the reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import ValidationError

from ksteer_vllm.data.readers.language import LANGUAGES, Language
from ksteer_vllm.data.readers.layout import BulletList, Heading, Json, NumberedList
from ksteer_vllm.data.readers.manner import (
    CAPITALS,
    EMOJI,
    EXCLAMATIONS,
    FIRST_PERSON,
    LOWER_CASE,
    PIRATE,
    QUESTIONS,
    SECOND_PERSON,
)
from ksteer_vllm.data.readers.wording import Ends, Mentions, Pattern, Sentences, Starts, Words
from ksteer_vllm.errors import DataError, choices, did_you_mean, first_problem, listing

__all__ = ["NAMED", "RULES", "Reader", "reader_of"]


class Reader(Protocol):
    """Says whether a text shows something."""

    def shows(self, text: str) -> bool:
        """Whether it does; the same text always gets the same answer."""
        ...


@dataclass(frozen=True)
class _All:
    readers: tuple[Reader, ...]

    def shows(self, text: str) -> bool:
        return all(reader.shows(text) for reader in self.readers)


@dataclass(frozen=True)
class _Any:
    readers: tuple[Reader, ...]

    def shows(self, text: str) -> bool:
        return any(reader.shows(text) for reader in self.readers)


@dataclass(frozen=True)
class _Not:
    reader: Reader

    def shows(self, text: str) -> bool:
        return not self.reader.shows(text)


NAMED: Final[Mapping[str, Reader]] = {
    **{name: Language(code) for code, name in LANGUAGES.items()},
    "pirate": PIRATE,
    "first person": FIRST_PERSON,
    "second person": SECOND_PERSON,
    "exclamations": EXCLAMATIONS,
    "only questions": QUESTIONS,
    "capitals": CAPITALS,
    "lower case": LOWER_CASE,
    "emoji": EMOJI,
    "numbered list": NumberedList(),
    "bullet list": BulletList(),
    "heading": Heading(),
    "json": Json(),
}
"""Readers that need no argument, by name."""


def reader_of(description: str | Mapping[str, Any]) -> Reader:
    """The reader a description names.

    Args:
        description: One of NAMED; or a mapping of one of RULES to its argument, such as
            `{"regex": "^Dear "}`, `{"words": {"max": 20}}`, `{"all": ["french", {"not": "numbered list"}]}`.

    Raises:
        DataError: Naming the part that is wrong, what it got and what is allowed.
    """
    if isinstance(description, str):
        name = _spelt(description)
        if name not in NAMED:
            raise DataError(
                f"unknown reader {description[:80]!r}; named readers: {listing(NAMED)}; with an argument: "
                f"{listing(RULES)}{did_you_mean(name, [*NAMED, *RULES])}"
            )
        return NAMED[name]
    if not isinstance(description, Mapping):
        raise DataError(f"expected a reader's name or one rule with its argument, got {description!r:.80}")
    if len(description) != 1:
        raise DataError(
            f"expected one rule with its argument, got {listing(description)}; combine several with all or "
            "any"
        )
    ((given, argument),) = description.items()
    rule = _spelt(str(given))
    if rule not in RULES:
        raise DataError(f"unknown rule {str(given)[:80]!r}; known: {choices(rule, RULES)}")
    try:
        return RULES[rule](argument)
    except ValidationError as error:
        raise DataError(f"{rule}: {first_problem(error)}") from None
    except DataError as error:
        raise DataError(f"{rule}: {error}") from None


def _spelt(name: str) -> str:
    """A name as the tables have it: `Numbered-list` is `numbered list`."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _language(argument: Any) -> Reader:
    if not isinstance(argument, str) or argument not in LANGUAGES:
        raise DataError(f"expected one of {listing(LANGUAGES)}, got {argument!r:.80}")
    return Language(argument)


def _mentions(argument: Any) -> Reader:
    if isinstance(argument, Mapping):
        return Mentions.model_validate(dict(argument))
    return Mentions.model_validate({"words": [argument] if isinstance(argument, str) else argument})


def _several(argument: Any) -> tuple[Reader, ...]:
    if not isinstance(argument, list | tuple) or not argument:
        raise DataError(f"expected a list of readers, got {argument!r:.80}")
    return tuple(map(reader_of, argument))


RULES: Final[Mapping[str, Callable[[Any], Reader]]] = {
    "language": _language,
    "words": Words.model_validate,
    "sentences": Sentences.model_validate,
    "mentions": _mentions,
    "starts with": lambda phrase: Starts.model_validate({"phrase": phrase}),
    "ends with": lambda phrase: Ends.model_validate({"phrase": phrase}),
    "regex": lambda pattern: Pattern.model_validate({"pattern": pattern}),
    "all": lambda parts: _All(_several(parts)),
    "any": lambda parts: _Any(_several(parts)),
    "not": lambda part: _Not(reader_of(part)),
}
"""Rules that take an argument, by name."""
