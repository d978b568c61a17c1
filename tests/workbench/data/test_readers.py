"""The readers on texts written by hand: what shows a thing, what does not, and what is no text any more."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ksteer_vllm.data.readers import NAMED, RULES, broken, reader_of
from ksteer_vllm.data.readers.words import sentences_of
from ksteer_vllm.errors import DataError

EXAMPLES: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "readers_examples.yaml").read_text(encoding="utf-8")
)
DEGENERATE: list[str] = EXAMPLES.pop("degenerate")
WITHOUT_EXAMPLES = {"italian", "portuguese"}
"""Languages that the others are told apart from."""

RULED: dict[str, tuple[Any, list[str], list[str]]] = {
    "language": ("es", ["El gato es un animal que duerme mucho y le gusta estar al sol."], ["Yes, it is."]),
    "words": (
        {"min": 2, "max": 5},
        ["Go to bed early.", "Tea, please", "one two three four five"],
        ["Tea.", "Go to bed early, and rise early, too.", "", "tea tea tea tea tea", "!!!"],
    ),
    "sentences": (
        {"max": 2},
        ["Go to bed.", "Go to bed. Sleep well!", "It costs 3.50 euros, e.g. at the market. Really?"],
        ["", "One. Two of them. Three of them.", "Go.\nStay.\nRun.", "...", "so so so so so so so so"],
    ),
    "mentions": (
        ["ocean", "sea"],
        ["The Sea is calm.", "By the ocean, we rest.", "sea"],
        ["The season is over.", "Oceans are large.", "", "sea sea sea sea sea sea sea", "At the see."],
    ),
    "starts with": (
        "Dear friend,",
        ["Dear friend, how are you?", "dear FRIEND! Good news."],
        ["Dear friend", "Hello, dear friend, how are you?", "", "Dear friends, hello."],
    ),
    "ends with": (
        "over and out",
        ["Sleep well, over and out!", "The tea is ready. OVER AND OUT"],
        ["Over and out", "Over and out, he said.", "", "It is all over and outside."],
    ),
    "regex": (
        r"(?i)\bban+ana\b",
        ["A banana a day.", "BANNNANA!"],
        ["Bananas", "", "apple"],
    ),
    "all": (["capitals", {"words": {"max": 5}}], ["I LIKE GREEN TEA"], ["I like green tea", "TEA " * 9]),
    "any": (["numbered list", "bullet list"], ["- a\n- b", "1. a\n2. b"], ["a\nb"]),
    "not": ("numbered list", ["Plain text."], ["1. a\n2. b"]),
}


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(name, text, id=f"{name}: {text[:40]}")
        for name, examples in EXAMPLES.items()
        for text in examples[kind]
    ]


def test_every_reader_has_examples() -> None:
    assert EXAMPLES.keys() == NAMED.keys() - WITHOUT_EXAMPLES
    assert RULED.keys() == RULES.keys()
    for name, examples in EXAMPLES.items():
        assert min(len(examples["shows"]), len(examples["not"])) >= 6, name


@pytest.mark.parametrize(("name", "text"), cases("shows"))
def test_shown(name: str, text: str) -> None:
    assert reader_of(name).shows(text)


@pytest.mark.parametrize(("name", "text"), cases("not"))
def test_not_shown(name: str, text: str) -> None:
    assert not reader_of(name).shows(text)


@pytest.mark.parametrize("text", DEGENERATE)
def test_a_reply_that_is_no_text_shows_nothing_and_is_broken(text: str) -> None:
    assert broken(text)
    assert [name for name, reader in NAMED.items() if reader.shows(text)] == []


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_with_its_argument(rule: str) -> None:
    argument, shown, not_shown = RULED[rule]
    reader = reader_of({rule: argument})
    assert [text for text in shown if not reader.shows(text)] == []
    assert [text for text in not_shown if reader.shows(text)] == []


def test_mentions_of_several() -> None:
    reader = reader_of({"mentions": {"words": ["sun", "wind", "new moon"], "least": 2}})
    assert reader.shows("The sun and the new moon.")
    assert not reader.shows("The sun, and again the sun.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Three words only", True),
        ("Now these are four", False),
        ("a b c a b c a b c a b c", True),
        ("The cat sat on the mat. The cat sat on the mat.", False),  # 10 trigrams, 7 of them different
        ("I like it a lot, and I like it a lot because I like it a lot, and I like it a lot", True),
    ],
)
def test_broken(text: str, expected: bool) -> None:
    assert broken(text) is expected


def test_names_may_be_written_with_dashes_and_capitals() -> None:
    assert reader_of("Numbered-List") is reader_of("numbered_list") is NAMED["numbered list"]
    assert reader_of({"ends_with": "the end"}) == reader_of({"ends with": "the end"})


def test_sentences() -> None:
    text = 'He said "Stop!" and left. It was 3.5 km, e.g. far.\n1. One thing\n2. Another (no!)'
    assert sentences_of(text) == [
        'He said "Stop!"',
        "and left.",
        "It was 3.5 km, e.g. far.",
        "One thing",
        "Another (no!)",
    ]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("klingon", "unknown reader 'klingon'; named readers: english, french"),
        ({"klingon": 1}, "unknown rule 'klingon'; known: language, words"),
        ({"language": "tlh"}, "language: expected one of en, fr, es, de, it, pt, got 'tlh'"),
        ({"language": ["fr"]}, "language: expected one of en, fr"),
        ({"words": {"maximum": 3}}, "words: maximum: Extra inputs are not permitted"),
        ({"words": {}}, "words: give min, max or both"),
        ({"words": {"min": 5, "max": 3}}, "words: min 5 is above max 3"),
        ({"regex": "(unclosed"}, "regex: pattern: not a regular expression: missing )"),
        ({"mentions": ["!"]}, "mentions: words: '!' has no letters or digits"),
        ({"mentions": {"words": ["a"], "least": 2}}, "mentions: least 2 is above the number of words, 1"),
        ({"starts with": ""}, "starts with: phrase: '' has no letters or digits"),
        ({"all": "french"}, "all: expected a list of readers, got 'french'"),
        ({"any": ["french", "klingon"]}, "any: unknown reader 'klingon'"),
        ({"words": {"max": 3}, "language": "fr"}, "combine several with all or any"),
        (7, "expected a reader's name or one rule with its argument, got 7"),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(description: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        reader_of(description)
    assert message in str(error.value)


def test_a_pattern_that_backtracks_without_end_is_refused_and_not_waited_for() -> None:
    reader = reader_of({"regex": r"^(a|aa)+$"})
    begun = time.process_time()
    with pytest.raises(DataError, match="needs more than 1 s for one reply"):
        reader.shows("a" * 60 + "b")
    assert time.process_time() - begun < 5  # of a match that would take years; the limit itself is 1 s
