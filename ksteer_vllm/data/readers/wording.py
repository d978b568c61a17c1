"""What a text says: how long it is, what it mentions, how it begins and ends, which pattern it matches."""

from __future__ import annotations

import regex
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from ksteer_vllm.data.readers.words import repetitive, sentences_of, words_of
from ksteer_vllm.errors import DataError

__all__ = ["Ends", "Length", "Mentions", "Pattern", "Sentences", "Starts", "Words"]

SECONDS = 1.0
"""Time limit for matching a pattern against one text."""


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Length(_Rule):
    """Bounds of a count, both included; at least one of them.

    Attributes:
        min: The least; None: no bound.
        max: The most; None: no bound.
    """

    min: NonNegativeInt | None = None
    max: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Length:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    def holds(self, count: int) -> bool:
        """Whether a count is within the bounds."""
        return (self.min is None or count >= self.min) and (self.max is None or count <= self.max)


class Words(Length):
    """The number of words is within the bounds; a text without words, or a repetitive one, shows nothing."""

    def shows(self, text: str) -> bool:
        words = words_of(text)
        return bool(words) and not repetitive(words) and self.holds(len(words))


class Sentences(Length):
    """The number of sentences is within the bounds; see `Words`."""

    def shows(self, text: str) -> bool:
        sentences = sentences_of(text)
        return bool(sentences) and not repetitive(words_of(text)) and self.holds(len(sentences))


class Mentions(_Rule):
    """At least `least` different ones of some words or phrases occur, as whole words, in any case."""

    words: tuple[str, ...] = Field(min_length=1)
    least: int = Field(default=1, ge=1)

    @field_validator("words")
    @classmethod
    def _say_something(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if empty := [word for word in words if not words_of(word)]:
            raise ValueError(f"{empty[0]!r} has no letters or digits")
        return words

    @model_validator(mode="after")
    def _reachable(self) -> Mentions:
        if self.least > len(self.words):
            raise ValueError(f"least {self.least} is above the number of words, {len(self.words)}")
        return self

    def shows(self, text: str) -> bool:
        words = words_of(text)
        said = f" {' '.join(words)} "
        found = sum(f" {' '.join(words_of(word))} " in said for word in set(self.words))
        return found >= self.least and not repetitive(words)


class _Phrase(_Rule):
    phrase: str

    @field_validator("phrase")
    @classmethod
    def _says_something(cls, phrase: str) -> str:
        if not words_of(phrase):
            raise ValueError(f"{phrase!r} has no letters or digits")
        return phrase


class Starts(_Phrase):
    """The text begins with these words, whatever the case and the marks, and goes on."""

    def shows(self, text: str) -> bool:
        said, wanted = words_of(text), words_of(self.phrase)
        return said[: len(wanted)] == wanted and len(said) > len(wanted) and not repetitive(said)


class Ends(_Phrase):
    """The text ends with these words, whatever the case and the marks, after others."""

    def shows(self, text: str) -> bool:
        said, wanted = words_of(text), words_of(self.phrase)
        return said[-len(wanted) :] == wanted and len(said) > len(wanted) and not repetitive(said)


class Pattern(_Rule):
    """A regular expression matches somewhere in the text.

    The syntax is that of Python's `re`, so `(?i)` at its head ignores case. A pattern that needs longer than
    SECONDS for one text is refused: what a reader says must not depend on how fast the machine is.
    """

    pattern: str = Field(min_length=1)
    _compiled: regex.Pattern[str] = PrivateAttr()

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    def model_post_init(self, _: object) -> None:
        self._compiled = regex.compile(self.pattern)

    def shows(self, text: str) -> bool:
        """Raises DataError for a pattern that takes too long."""
        try:
            return self._compiled.search(text, timeout=SECONDS) is not None
        except TimeoutError:
            raise DataError(
                f"regex: {self.pattern[:80]!r} needs more than {SECONDS:g} s for one reply; rewrite it "
                "without repetition inside repetition, such as (a+)+"
            ) from None
