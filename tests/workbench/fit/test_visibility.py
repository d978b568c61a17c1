"""Whether replies show their labels: true labels pass, those that were only asked for do not."""

from __future__ import annotations

import random

import pytest

from ksteer_vllm.data.rows import LabelledRow, Message
from ksteer_vllm.fit.gates import refusal, told
from ksteer_vllm.fit.visibility import invisible, terms, visibility

WORDS = [
    "we",
    "use",
    "water",
    "and",
    "soap",
    "then",
    "wait",
    "until",
    "it",
    "is",
    "dry",
    "before",
    "the",
    "next",
    "part",
    "of",
    "the",
    "job",
    "begins",
]
LABELS = ("formal", "loud", "short")


def replies(label: str | None, rng: random.Random) -> str:
    """Text that shows its label by a word, by punctuation or by its length."""
    words = [rng.choice(WORDS) for _ in range(8 if label == "short" else rng.randint(20, 30))]
    if label == "formal":
        words[rng.randrange(len(words))] = "hence"
    return " ".join(words) + ("!" if label == "loud" else ".")


def rows(*, true: bool, questions: int = 24, seed: int = 0) -> list[LabelledRow]:
    """Every question once under each label's instruction; not `true`: the instruction is ignored."""
    rng = random.Random(seed)
    return [
        LabelledRow(
            prompt=(Message(role="system", content=f"Be {label}."), Message(role="user", content=f"Q {k}?")),
            reply=replies(label if true else None, rng),
            labels=(label,),
        )
        for k in range(questions)
        for label in LABELS
    ]


def test_words_punctuation_and_length_make_labels_visible() -> None:
    found = visibility(rows(true=True), LABELS)
    assert [one.label for one in found] == list(LABELS)
    for one in found:
        assert one.visible, one
        assert one.auroc > 0.9
        assert one.accuracy.low > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_labels_that_were_only_asked_for_are_invisible(seed: int) -> None:
    found = visibility(rows(true=False, seed=seed), LABELS)
    assert invisible(found) == found
    for one in found:
        assert one.accuracy.low <= 0.5 or one.accuracy.value < 0.6


def test_the_question_is_not_what_tells() -> None:
    """Replies that repeat their question, each question under one label: only cross-fitting by question sees
    that nothing else differs."""
    rng = random.Random(0)
    found = [
        LabelledRow(
            prompt=f"question {k}", reply=f"topic{k} {replies(None, rng)}", labels=("a",) if k % 2 else ("b",)
        )
        for k in range(12)
        for _ in range(8)
    ]
    assert {one.label for one in invisible(visibility(found, ("a", "b")))} == {"a", "b"}


def test_text_without_spaces_is_taken_by_characters() -> None:
    assert list(terms("東京へ go!")) == ["東", "京", "へ", "東京", "京へ", "go", "!"]
    rng = random.Random(1)
    characters = "水石山川田中日月火木金土人口手足目耳"
    found = []
    for k in range(60):
        drawn = "".join(rng.choice(characters) for _ in range(20))
        polite = k % 2 == 0
        found.append(
            LabelledRow(
                prompt=f"q{k}",
                reply=drawn + ("です" if polite else "だ"),
                labels=("polite",) if polite else (),
            )
        )
    (one,) = visibility(found, ("polite",))
    assert one.visible


def test_the_sentence_names_labels_figures_and_remedies() -> None:
    hidden = visibility(rows(true=False), LABELS)
    assert told(hidden).startswith("the replies do not show their labels: a bag of words, tested on other")
    for one in hidden:
        assert f"{one.label} {one.accuracy.value:.2f} [{one.accuracy.low:.2f}, " in told(hidden)
    mixed = [*visibility(rows(true=True), LABELS)[:2], hidden[2]]
    assert "do not show some of their labels" in told(mixed)
    assert "fit the others alone (--labels formal,loud)" in refusal(mixed)
    assert "or fit anyway (--allow-invisible-labels)" in refusal(hidden)
    assert "--labels" not in refusal(hidden)
