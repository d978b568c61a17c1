"""The reader is exact on the corpus, and refuses replies that break any rule of it."""

from __future__ import annotations

import itertools
import random

import pytest

from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.demo.corpus import (
    Example,
    Topic,
    examples,
    held_out_questions,
    instruction_for,
    make_example,
    make_reply,
    train_questions,
)
from ksteer_vllm.demo.lexicon import ASIDES, CLOSERS, OPENERS, QUESTIONS, STEPS, TONES
from ksteer_vllm.demo.reader import Reading, read, read_question

TONE_SETS = [frozenset(chosen) for size in (1, 2, 3) for chosen in itertools.combinations(TONES, size)]
CORE = "To clean the kettle, no sweat, you can rinse it with water and then dry it in the sun."
OPENER = "Science shows a clear method."
CLOSER = "Have fun with it mate!"
QUESTION = "How do I clean my kettle?"


def _corpus(count_per_set: int, seed: int) -> list[Example]:
    rng = random.Random(seed)
    questions = train_questions() + held_out_questions("calibration") + held_out_questions("test")
    return [
        make_example(rng.choice(questions), rng, instructed=False, tones=tones)
        for tones in TONE_SETS
        for _ in range(count_per_set)
    ]


def _reading(example: Example, reply: str) -> Reading:
    return read(example.question.text, reply)


def test_corpus_replies_are_read_exactly() -> None:
    for example in _corpus(60, seed=1):
        reading = _reading(example, example.reply)
        assert reading == Reading(example.tones, True, (), reading.sentences), example


def test_the_corpus_uses_every_wording() -> None:
    read_sentences = [
        sentence
        for example in _corpus(40, seed=2)
        for sentence in _reading(example, example.reply).sentences
        if sentence is not None
    ]
    for part, wordings in (("opener", OPENERS), ("closer", CLOSERS)):
        seen = {(s.marks[0], s.short) for s in read_sentences if s.part == part}
        assert seen == set(wordings)
    cores = [sentence for sentence in read_sentences if sentence.part == "core"]
    assert {mark for core in cores for mark in core.marks} == set(ASIDES)
    assert {core.short for core in cores} == {False, True}


def test_perturbed_replies_are_not_well_formed() -> None:
    rng = random.Random(3)
    for example in _corpus(12, seed=3):
        words = example.reply.split(" ")
        place = rng.randrange(len(words))
        sentences = [s + e for s, e in zip(*_split(example.reply), strict=True)]
        other = next(verb for verb in STEPS if verb != example.question.topic.verb)
        perturbed = [
            " ".join(words[:place] + words[place + 1 :]),
            " ".join(words[: place + 1] + words[place:]),
            " ".join([*words[:place], "purple", *words[place + 1 :]]),
            example.reply[:-1],
            example.reply + " " + sentences[-1],
            example.reply + " ",
            make_reply(Topic(example.question.topic.verb, "boat"), example.tones, rng),
            make_reply(Topic(other, example.question.topic.noun), example.tones, rng),
            "",
        ]
        if len(sentences) > 1:
            perturbed += [" ".join(reversed(sentences))]
        for reply in perturbed:
            reading = _reading(example, reply)
            assert not reading.well_formed, reply
            assert reading.problems, reply


def _split(reply: str) -> tuple[list[str], list[str]]:
    bodies = reply.replace("!", ".").split(".")[:-1]
    ends = [mark for mark in reply if mark in ".!"]
    return [body.strip() for body in bodies], ends


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (f"{OPENER} {CLOSER}", "the core sentence is missing"),
        (f"{CORE} {CORE}", "there are several core sentences"),
        (f"{CORE} {OPENER}", "the sentences are out of order"),
        (f"Careful here. {OPENER} {CORE}", "the sentences are out of order"),
        (f"{OPENER} {OPENER} {CORE}", "a mark is given twice"),
        (CORE.replace("no sweat,", "no sweat, easy peasy,"), "a mark is given twice"),
        (CORE.replace("no sweat,", "very slowly, no sweat,"), "the sentences are out of order"),
        (f"{CORE} Heat is a deal.", "a sentence is not of the language"),
        (CORE.replace("kettle", "lamp"), "the reply answers another question"),
        (CORE.replace("rinse it with water", "tie a bow"), "a step does not belong there"),
        (CORE.replace("rinse it with water", "dry it in the sun"), "a step does not belong there"),
    ],
)
def test_each_rule_names_its_problem(reply: str, problem: str) -> None:
    assert problem in read(QUESTION, reply).problems


def test_tones_of_an_ill_formed_reply_are_read_sentence_by_sentence() -> None:
    reading = read(QUESTION, f"{OPENER} What now? {CORE}")
    assert not reading.well_formed
    assert reading.tones == {"casual", "expert"}
    assert [sentence is None for sentence in reading.sentences] == [False, True, False]


def test_a_reply_that_was_cut_off_is_not_well_formed() -> None:
    reply = f"{CORE} {CLOSER}"
    assert read(QUESTION, reply).well_formed
    assert not read(QUESTION, reply, finished=False).well_formed


def test_questions_split_by_topic() -> None:
    splits = [train_questions(), held_out_questions("calibration"), held_out_questions("test")]
    topics = [{question.topic for question in split} for split in splits]
    assert all(len(split) >= 120 and len({q.text for q in split}) == len(split) for split in splits)
    assert all(not left & right for left, right in itertools.combinations(topics, 2))
    assert {topic.verb for topic in topics[0]} == set(STEPS)
    assert sum(map(len, splits)) == len(topics[0] | topics[1] | topics[2]) * len(QUESTIONS)
    for question in itertools.chain(*splits):
        assert read_question(question.text) == question.topic
    assert read_question("How do I steer my boat?") is None


def test_the_corpus_is_deterministic() -> None:
    def first(seed: int) -> list[Example]:
        return list(itertools.islice(examples(train_questions(), seed, instructed_share=0.5), 200))

    assert first(5) == first(5)
    assert first(5) != first(6)
    assert train_questions() == train_questions()


def test_tones_drawn_without_an_instruction_are_balanced() -> None:
    drawn = list(itertools.islice(examples(train_questions(), 7), 4000))
    assert all(example.instruction is None and 1 <= len(example.tones) <= 3 for example in drawn)
    for tone in TONES:
        assert sum(tone in example.tones for example in drawn) / len(drawn) == pytest.approx(0.25, abs=0.03)


def test_an_instruction_names_its_tones() -> None:
    rng = random.Random(8)
    for tones in TONE_SETS:
        instruction = instruction_for(tones, rng)
        assert {tone for tone in TONES if tone in instruction} == tones
        assert "a expert" not in instruction
        assert "a empathetic" not in instruction


def test_the_shipped_model_is_small_and_complete() -> None:
    names = {path.name for path in MODEL_DIR.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert "tokenizer_config.json" in names
    assert sum(path.stat().st_size for path in MODEL_DIR.rglob("*")) <= 8_000_000
