"""An exact reader of replies in the demo language: which tones a reply shows, and whether it is well formed.

The rules are the corpus wordings themselves, so nothing is learned and nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ksteer_vllm.demo.corpus import Topic, slots_of
from ksteer_vllm.demo.lexicon import NOUNS, QUESTIONS, SLOTS, STEPS, WORDINGS, Register

_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_PIECE = re.compile(r"\{([^}]*)\}|<(\w+)>")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a reply that the grammar knows; ``topic`` is set for the core sentence only."""

    slot: str
    register: Register
    topic: Topic | None = None
    steps: tuple[str, str] | None = None

    @property
    def tones(self) -> frozenset[str]:
        """The tones this sentence shows by itself."""
        return self.register | (frozenset() if self.slot in {"core", "closer"} else {self.slot})


@dataclass(frozen=True)
class Reading:
    """What a reply shows.  ``problems`` says, in words, why it is not well formed; empty if it is."""

    tones: frozenset[str]
    well_formed: bool
    problems: tuple[str, ...] = ()
    sentences: tuple[Sentence | None, ...] = ()


def _alternatives(words: list[str]) -> str:
    return "|".join(re.escape(word) for word in words)


def _field(name: str) -> str:
    choices = {
        "verb": list(STEPS),
        "noun": list(NOUNS),
        "step1": [step for steps in STEPS.values() for step in steps],
        "step2": [step for steps in STEPS.values() for step in steps],
    }
    return f"(?P<{name}>{_alternatives(choices[name])})"


def _pattern(wording: str) -> re.Pattern[str]:
    parts, end = [], 0
    for match in _PIECE.finditer(wording):
        parts.append(re.escape(wording[end : match.start()]))
        parts.append(_field(match[2]) if match[2] else f"(?:{_alternatives(match[1].split('|'))})")
        end = match.end()
    return re.compile("".join(parts) + re.escape(wording[end:]))


@cache
def _sentence_patterns() -> tuple[tuple[re.Pattern[str], str, Register], ...]:
    return tuple(
        (_pattern(wording), slot, register)
        for (slot, register), wordings in WORDINGS.items()
        for wording in wordings
    )


@cache
def _question_patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(template) for template in QUESTIONS)


def read_question(question: str) -> Topic | None:
    """The topic of a question of the demo language, or None for any other text."""
    for pattern in _question_patterns():
        if match := pattern.fullmatch(question):
            return Topic(match["verb"], match["noun"])
    return None


def read_sentence(text: str) -> Sentence | None:
    """One sentence, or None if the grammar does not know it."""
    for pattern, slot, register in _sentence_patterns():
        if match := pattern.fullmatch(text):
            if slot != "core":
                return Sentence(slot, register)
            topic = Topic(match["verb"], match["noun"])
            return Sentence(slot, register, topic, (match["step1"], match["step2"]))
    return None


def read(question: str, reply: str, *, finished: bool = True) -> Reading:
    """Read a reply to a question.

    Tones are collected from every sentence the grammar knows, also if the whole reply is not well formed.
    Pass ``finished=False`` for a reply that was cut off before its end-of-sequence token.
    """
    sentences = tuple(read_sentence(text) for text in _SENTENCE_END.split(reply))
    known = [sentence for sentence in sentences if sentence is not None]
    tones = frozenset(tone for sentence in known for tone in sentence.tones)
    problems = []
    if not finished:
        problems.append("the reply was cut off")
    if len(known) < len(sentences):
        problems.append("a sentence is not of the language")
    slots = [sentence.slot for sentence in known]
    if len(set(slots)) < len(slots):
        problems.append("a slot is filled twice")
    if slots != sorted(slots, key=SLOTS.index):
        problems.append("the sentences are out of order")
    if len({sentence.register for sentence in known}) > 1:
        problems.append("the register changes within the reply")
    missing = set(slots_of(tones)) - set(slots)
    problems += [f"the {slot} sentence is missing" for slot in SLOTS if slot in missing]
    problems += _topic_problems(read_question(question), known)
    return Reading(tones, not problems, tuple(problems), sentences)


def _topic_problems(asked: Topic | None, sentences: list[Sentence]) -> list[str]:
    problems = []
    for sentence in sentences:
        if sentence.topic is None or sentence.steps is None:
            continue
        if sentence.topic != asked:
            problems.append("the reply answers another question")
        if sentence.steps[0] == sentence.steps[1]:
            problems.append("a step is given twice")
        if not set(sentence.steps) <= set(STEPS[sentence.topic.verb]):
            problems.append("a step does not belong to it")
    return problems
