"""Prompt pairs: one text without and with a context that asks for behaviours; both end before a word."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ksteer_vllm.data.rows import LabelledRow

__all__ = ["Environment", "Example", "Pair", "first_words", "spread_evenly", "target_sets", "word_of"]

_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Pair:
    """A prompt without and with its context.

    targets: the behaviours the context asks for. words: behaviour -> the words that show it here. skipped:
    words that begin several behaviours' wordings, so that the word after them counts. lead: what stands
    between the prompt and the word.
    """

    targets: tuple[str, ...]
    neutral: str
    context: str
    words: Mapping[str, tuple[str, ...]] = field(compare=False)
    skipped: frozenset[str] = frozenset()
    lead: str = " "
    place: str = ""

    def target_words(self) -> frozenset[str]:
        """Every word that shows one of the behaviours asked for."""
        return frozenset(word for target in self.targets for word in self.words[target])


@dataclass(frozen=True)
class Example:
    """A pair, and a reply from the word on that shows exactly the behaviours its context asks for."""

    pair: Pair
    reply: str


@dataclass(frozen=True)
class Environment:
    """Behaviours, examples to fit methods to, and prompt pairs no method was fitted to.

    pairs: `selection` (which features belong to a behaviour), `calibration` (strengths) and `test`; what
    templates are filled with in one of the last two is in no other part. layer: the block that is steered.
    temperature: of the word that is produced. fit_options: method -> options.
    """

    name: str
    model: str
    behaviours: tuple[str, ...]
    layer: int
    examples: Sequence[Example]
    pairs: Mapping[str, Sequence[Pair]]
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    fit_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    temperature: float = 1.0

    def rows(self, *, context: bool, alone: bool = False) -> list[LabelledRow]:
        """The examples as labelled text: prompts with their contexts, or without; alone: of one behaviour."""
        return [
            LabelledRow(
                prompt=example.pair.context if context else example.pair.neutral,
                reply=example.reply,
                labels=example.pair.targets,
            )
            for example in self.examples
            if not alone or len(example.pair.targets) == 1
        ]

    def pairs_of(self, part: str, size: int) -> list[Pair]:
        """The pairs of a part whose contexts ask for this many behaviours."""
        return [pair for pair in self.pairs[part] if len(pair.targets) == size]


def target_sets(behaviours: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(combinations(behaviours, size))


def word_of(text: str, skipped: frozenset[str] = frozenset()) -> str:
    """The first word of a produced text that is not among `skipped`; empty if there is none."""
    return next((word for word in _WORD.findall(text) if word not in skipped), "")


def first_words(wordings: Mapping[str, Iterable[str]]) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """behaviour -> the first words that tell its wordings apart, and the words skipped to get there.

    A word is skipped if wordings of two behaviours begin with it.
    """
    begin = {name: {word_of(text) for text in texts} for name, texts in wordings.items()}
    counted = [word for words in begin.values() for word in words]
    skipped = frozenset(word for word in counted if counted.count(word) > 1)
    words = {name: sorted({word_of(text, skipped) for text in wordings[name]}) for name in wordings}
    return {name: tuple(found) for name, found in words.items()}, skipped


def spread_evenly(rng: random.Random, items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items in random order, every one as often as any other, give or take one."""
    found: list[Any] = []
    while len(found) < count:
        found += rng.sample(items, len(items))
    return found[:count]
