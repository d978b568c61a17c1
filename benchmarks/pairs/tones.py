"""Prompt pairs for the shipped chat model: six tones, asked for by a system message or not at all.

A template is a question and a place in its reply: the reply's first word, the word after `To sell the chair,`
and the word after a core sentence that shows no tone. The words that show a tone at a place are the first of
the demo language's wordings (`ksteer_vllm.demo.lexicon`) that no other tone's wordings begin with.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.pairs.environment import (
    Environment,
    Example,
    Pair,
    first_words,
    spread_evenly,
    target_sets,
)
from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
from ksteer_vllm.demo.corpus import (
    Question,
    fill,
    held_out_questions,
    instruction_for,
    prompt_messages,
    train_questions,
)
from ksteer_vllm.demo.lexicon import ASIDES, CLOSERS, OPENERS, STEPS, TONE_ORDER, TONES

__all__ = ["tones_environment"]

_CHOICE = re.compile(r"\{([^}]*)\}")


def expansions(wording: str) -> list[str]:
    """Every text a wording stands for."""
    pieces = [part.split("|") if index % 2 else [part] for index, part in enumerate(_CHOICE.split(wording))]
    return ["".join(chosen) for chosen in itertools.product(*pieces)]


def _by_tone(wordings: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for tone, wording in wordings:
        found.setdefault(tone, []).extend(expansions(wording))
    return found


_WORDINGS = {
    "opening": _by_tone((tone, wording) for (tone, _), wording in OPENERS.items()),
    "aside": _by_tone(ASIDES.items()),
    "closing": _by_tone((tone, wording) for (tone, _), wording in CLOSERS.items()),
}
"""place -> tone -> the wordings that show it there; `concise` has none of the asides."""

PLACES = {place: first_words(wordings) for place, wordings in _WORDINGS.items()}


def _places_of(tones: Sequence[str]) -> list[str]:
    return [place for place, (words, _) in PLACES.items() if all(tone in words for tone in tones)]


def _fields(question: Question, rng: random.Random) -> dict[str, str]:
    first, second = (rng.choice(steps) for steps in STEPS[question.topic.verb])
    return {"verb": question.topic.verb, "noun": question.topic.noun, "first": first, "second": second}


BEGUN = {
    "opening": "",
    "aside": "To <verb> the <noun>,",
    "closing": "To <verb> the <noun>, you can <first> and then <second>.",
}
"""What the reply begins with before the word."""


def _pair(tokenizer: Any, question: Question, place: str, tones: Sequence[str], rng: random.Random) -> Pair:
    begun = fill(BEGUN[place], _fields(question, rng))
    neutral, context = (
        tokenizer.apply_chat_template(
            prompt_messages(question.text, instruction), tokenize=False, add_generation_prompt=True
        )
        + begun
        for instruction in (None, instruction_for(frozenset(tones), rng))
    )
    words, skipped = PLACES[place]
    return Pair(tuple(tones), neutral, context, words, skipped, " " if begun else "", place)


def _pairs(
    tokenizer: Any, questions: Sequence[Question], sizes: Sequence[int], per_set: int, rng: random.Random
) -> list[Pair]:
    """`per_set` pairs for every set of tones, spread over questions and places."""
    found = []
    for tones in (chosen for size in sizes for chosen in target_sets(TONES, size)):
        places = itertools.cycle(_places_of(tones))
        asked = spread_evenly(rng, questions, per_set)
        found += [_pair(tokenizer, question, next(places), tones, rng) for question in asked]
    return found


def _rest_of_reply(question: Question, place: str, tones: Sequence[str], rng: random.Random) -> str:
    """A reply in these tones from the place on, each with its mark wherever it has one."""
    ordered = [tone for tone in TONE_ORDER if tone in tones]
    short = "concise" in tones

    def sentences(wordings: dict[tuple[str, bool], str]) -> list[str]:
        return [rng.choice(expansions(wordings[tone, short])) for tone in ordered]

    asides = "".join(rng.choice(expansions(ASIDES[tone])) for tone in ordered if tone in ASIDES)
    core = f":{asides} <first>, <second>." if short else f",{asides} you can <first> and then <second>."
    core = fill(core, _fields(question, rng))
    closers = sentences(CLOSERS)
    if place == "closing":
        return " " + " ".join(closers)
    if place == "aside":
        return " ".join([core.removeprefix(","), *closers])
    begin = fill("To <verb> the <noun>", _fields(question, rng))
    return " ".join([*sentences(OPENERS), begin + core, *closers])


def _examples(tokenizer: Any, count: int, rng: random.Random) -> list[Example]:
    """Pairs on questions of the training split with one to three tones, equally often, and their replies."""
    questions, found = train_questions(), []
    for _ in range(count):
        chosen = rng.sample(TONES, rng.choice((1, 2, 3)))
        tones = [tone for tone in TONES if tone in chosen]
        question, place = rng.choice(questions), rng.choice(_places_of(tones))
        pair = _pair(tokenizer, question, place, tones, rng)
        found.append(Example(pair, _rest_of_reply(question, place, tones, rng)))
    return found


def tones_environment(
    *,
    examples: int = 1500,
    per_set: int = 9,
    tests: int = 30,
    sizes: Sequence[int] = (1, 2, 3),
    seed: int = 0,
) -> Environment:
    """examples: to fit methods to. per_set: calibration pairs of a set of tones; tests: its test pairs.
    sizes: of the sets."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    rng = random.Random(seed)
    return Environment(
        name="tones",
        model=str(MODEL_DIR),
        behaviours=TONES,
        layer=2,
        examples=_examples(tokenizer, examples, rng),
        pairs={
            "selection": _pairs(tokenizer, train_questions(), (1,), max(12, tests), rng),
            "calibration": _pairs(tokenizer, held_out_questions("calibration"), sizes, per_set, rng),
            "test": _pairs(tokenizer, held_out_questions("test"), sizes, tests, rng),
        },
        engine_options=ENGINE_OPTIONS,
        fit_options={"mlp": {"noise": 1.0}},
    )
