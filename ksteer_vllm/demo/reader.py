"""An exact reader of replies in the demo language: which tones a reply shows, and whether it is well formed.

The rules are the corpus wordings themselves, so nothing is learned and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ksteer_vllm.demo.corpus import Topic
from ksteer_vllm.demo.lexicon import ASIDES, CLOSERS, CORES, NOUNS, OPENERS, QUESTIONS, STEPS, TONE_ORDER

_PARTS = ("opener", "core", "closer")
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_PIECE = re.compile(r"\{([^}]*)\}|<(\w+)>")


@dataclass(frozen=True)
class Sentence:
    """One sentence of the language; only a core sentence has a topic and steps.

    ``marks`` are the tones of an opener, of a closer, or of the asides of a core, in order of appearance;
    ``short`` says that the sentence has its short form.
    """

    part: str
    marks: tuple[str, ...]
    short: bool
    topic: Topic | None = None
    steps: tuple[str, ...] = ()

    @property
    def tones(self) -> frozenset[str]:
        """The tones this sentence shows by itself; every short form is a sign of concise."""
        return frozenset(self.marks) | ({"concise"} if self.short else set())


@dataclass(frozen=True)
class Reading:
    """What a reply shows.  ``problems`` says, in words, why it is not well formed; empty if it is."""

    tones: frozenset[str]
    well_formed: bool
    problems: tuple[str, ...] = ()
    sentences: tuple[Sentence | None, ...] = ()


def _alternatives(words: Sequence[str]) -> str:
    return "|".join(re.escape(word) for word in words)


def _field(name: str) -> str:
    if name == "asides":
        return f"(?P<asides>(?:{'|'.join(_expression(wording) for wording in ASIDES.values())})*)"
    steps = [step for pairs in STEPS.values() for pair in pairs for step in pair]
    choices = {"verb": list(STEPS), "noun": list(NOUNS), "step1": steps, "step2": steps}
    return f"(?P<{name}>{_alternatives(choices[name])})"


def _expression(wording: str) -> str:
    parts, end = [], 0
    for match in _PIECE.finditer(wording):
        parts.append(re.escape(wording[end : match.start()]))
        parts.append(_field(match[2]) if match[2] else f"(?:{_alternatives(match[1].split('|'))})")
        end = match.end()
    return "".join(parts) + re.escape(wording[end:])


@cache
def _patterns(part: str) -> tuple[tuple[re.Pattern[str], tuple[str, ...], bool], ...]:
    if part == "core":
        return tuple((re.compile(_expression(wording)), (), short) for short, wording in CORES.items())
    wordings = OPENERS if part == "opener" else CLOSERS
    return tuple(
        (re.compile(_expression(wording)), (tone,), short) for (tone, short), wording in wordings.items()
    )


@cache
def _question_patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(_expression(template)) for template in QUESTIONS)


def read_question(question: str) -> Topic | None:
    """The topic of a question of the demo language, or None for any other text."""
    for pattern in _question_patterns():
        if match := pattern.fullmatch(question):
            return Topic(match["verb"], match["noun"])
    return None


def _read_asides(text: str) -> Iterator[str]:
    while text:
        for tone, wording in ASIDES.items():
            if match := re.match(_expression(wording), text):
                yield tone
                text = text[match.end() :]


def read_sentence(text: str) -> Sentence | None:
    """One sentence, or None if the grammar does not know it."""
    for part in _PARTS:
        for pattern, marks, short in _patterns(part):
            match = pattern.fullmatch(text)
            if match and part == "core":
                topic = Topic(match["verb"], match["noun"])
                steps = (match["step1"], match["step2"])
                return Sentence(part, tuple(_read_asides(match["asides"])), short, topic, steps)
            if match:
                return Sentence(part, marks, short)
    return None


def read(question: str, reply: str, *, finished: bool = True) -> Reading:
    """Read a reply to a question.

    Tones are collected from every sentence the grammar knows, even if the whole reply is not well formed.
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
    problems += _order_problems(known)
    cores = [sentence for sentence in known if sentence.part == "core"]
    if len(cores) != 1:
        problems.append("the core sentence is missing" if not cores else "there are several core sentences")
    asked = read_question(question)
    for core in cores:
        if core.topic != asked:
            problems.append("the reply answers another question")
        if core.topic is not None and not _belong(core.steps, core.topic):
            problems.append("a step does not belong there")
    return Reading(tones, not problems, tuple(problems), sentences)


def _belong(steps: Sequence[str], topic: Topic) -> bool:
    return all(step in choices for step, choices in zip(steps, STEPS[topic.verb], strict=True))


def _order_problems(sentences: Sequence[Sentence]) -> list[str]:
    marks = [(_PARTS.index(s.part), TONE_ORDER.index(mark)) for s in sentences for mark in s.marks]
    parts = [_PARTS.index(sentence.part) for sentence in sentences]
    problems = []
    if len(set(marks)) < len(marks):
        problems.append("a mark is given twice")
    if marks != sorted(marks) or parts != sorted(parts):
        problems.append("the sentences are out of order")
    return problems
