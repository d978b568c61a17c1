"""Questions and replies of the demo language, drawn deterministically from a seed.

A reply is opening sentences, one core sentence that answers the question, and closing sentences.  A tone
leaves a mark in each part: an opener, an aside within the core, a closer; now and then one of them is
omitted.  The tone concise also shortens the sentences of the other tones, so a tone looks different beside
another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ksteer_vllm.demo.lexicon import (
    ASIDES,
    CLOSERS,
    CORES,
    INSTRUCTIONS,
    NOUNS,
    OPENERS,
    QUESTIONS,
    STEPS,
    TONE_ORDER,
    TONES,
)

HeldOut = Literal["calibration", "test"]

SIZE_WEIGHTS: Final = (0.6, 0.3, 0.1)
"""How often a reply without an instruction shows one, two or three tones: 0.25 for each single tone."""

OMISSION: Final = 0.25
"""How often a tone leaves out one of its three marks."""

_SPLIT_PERIOD: Final = 9
_CHOICE: Final = re.compile(r"\{([^}]*)\}")


@dataclass(frozen=True)
class Topic:
    """What a question is about: something to do with some thing."""

    verb: str
    noun: str


@dataclass(frozen=True)
class Question:
    """One question and its topic."""

    text: str
    topic: Topic


@dataclass(frozen=True)
class Example:
    """One chat of the corpus.  ``instruction`` is the system message, or None."""

    question: Question
    tones: frozenset[str]
    reply: str
    instruction: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """The chat, reply included, in the form chat templates take."""
        reply = {"role": "assistant", "content": self.reply}
        return [*prompt_messages(self.question.text, self.instruction), reply]


def prompt_messages(question: str, instruction: str | None = None) -> list[dict[str, str]]:
    """The chat up to the reply."""
    system = [{"role": "system", "content": instruction}] if instruction is not None else []
    return [*system, {"role": "user", "content": question}]


def _questions(remainders: frozenset[int]) -> list[Question]:
    found = []
    for verb_index, verb in enumerate(STEPS):
        for noun_index, noun in enumerate(NOUNS):
            if (2 * verb_index + noun_index) % _SPLIT_PERIOD in remainders:
                topic = Topic(verb, noun)
                fields = {"verb": verb, "noun": noun}
                found += [Question(fill(template, fields), topic) for template in QUESTIONS]
    random.Random(20).shuffle(found)
    return found


def train_questions() -> list[Question]:
    """The questions the shipped model saw in training, in a fixed shuffled order."""
    return _questions(frozenset(range(2, _SPLIT_PERIOD)))


def held_out_questions(split: HeldOut) -> list[Question]:
    """Questions on topics that no training question has; the two splits share no topic either."""
    return _questions(frozenset({{"calibration": 0, "test": 1}[split]}))


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Put the fields of a topic into a template."""
    return re.sub(r"<(\w+)>", lambda match: fields[match[1]], template)


def draw_tones(rng: random.Random) -> frozenset[str]:
    """A random set of one to three tones."""
    size = rng.choices((1, 2, 3), SIZE_WEIGHTS)[0]
    return frozenset(rng.sample(TONES, size))


def instruction_for(tones: frozenset[str], rng: random.Random) -> str:
    """A system message that asks for the tones, named in random order."""
    names = rng.sample(sorted(tones), len(tones))
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    article = "an" if listed[0] in "aeiou" else "a"
    return fill(rng.choice(INSTRUCTIONS), {"article": article, "tones": listed})


def _expand(wording: str, rng: random.Random) -> str:
    return _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), wording)


def _kept(tone: str, tones: frozenset[str], rng: random.Random) -> list[str]:
    """The parts a tone marks: most often all three, at least two.  An aside of concise is a short core."""
    parts = ["opener", "aside", "closer"]
    if rng.random() < OMISSION:
        parts.remove(rng.choice(parts))
    return parts if tone in tones else []


def make_reply(topic: Topic, tones: frozenset[str], rng: random.Random) -> str:
    """A random reply on the topic that shows exactly these tones."""
    first, second = (rng.choice(steps) for steps in STEPS[topic.verb])
    fields = {"verb": topic.verb, "noun": topic.noun, "step1": first, "step2": second}
    parts = {tone: _kept(tone, tones, rng) for tone in TONE_ORDER}

    def sentences(wordings: Mapping[tuple[str, bool], str], part: str) -> list[str]:
        return [
            _expand(wordings[tone, "concise" in tones], rng) for tone in TONE_ORDER if part in parts[tone]
        ]

    asides = (ASIDES[tone] for tone in TONE_ORDER if "aside" in parts[tone] and tone in ASIDES)
    fields["asides"] = "".join(_expand(aside, rng) for aside in asides)
    core = fill(_expand(CORES["aside" in parts["concise"]], rng), fields)
    return " ".join([*sentences(OPENERS, "opener"), core, *sentences(CLOSERS, "closer")])


def make_example(
    question: Question, rng: random.Random, *, instructed: bool, tones: frozenset[str] | None = None
) -> Example:
    """One chat on the question; the tone set is drawn unless given."""
    shown = draw_tones(rng) if tones is None else tones
    instruction = instruction_for(shown, rng) if instructed else None
    return Example(question, shown, make_reply(question.topic, shown, rng), instruction)


def examples(questions: Sequence[Question], seed: int, *, instructed_share: float = 0.0) -> Iterator[Example]:
    """An endless stream of chats on random questions; ``instructed_share`` of them carry an instruction."""
    rng = random.Random(seed)
    while True:
        question = rng.choice(questions)
        yield make_example(question, rng, instructed=rng.random() < instructed_share)
