"""Which replies a probe is fitted to, and what is said of those that are not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksteer_vllm.data.behaviours import Behaviour, Behaviours
from ksteer_vllm.errors import DataError
from ksteer_vllm.experiments.knob.checks import checks_of
from ksteer_vllm.experiments.knob.prompts import PromptForm, TemplateChoice
from ksteer_vllm.experiments.knob.selection import PLAIN, Selection, select
from ksteer_vllm.experiments.knob.separable import separate
from ksteer_vllm.experiments.knob.tables import selection_table
from ksteer_vllm.experiments.knob.written import Asked, Written, fitting_jobs

NO_VERDICTS = Path()
"""Where endpoints' verdicts would go; no check here has one."""
QUESTIONS = [f"What is number {number}?" for number in range(40)]
FRENCH = "Je pense que la mer est belle et que le sable est doux. {}"
PLAIN_WORDS = [
    "bread",
    "table",
    "winter",
    "garden",
    "river",
    "window",
    "letter",
    "money",
    "holiday",
    "kitchen",
    "street",
    "music",
]


class FakeTokenizer:
    """A tokenizer as far as prompts need one."""

    chat_template = "a template"
    bos_token = "<s>"
    all_special_tokens = ("<s>",)

    def apply_chat_template(self, chat: list[dict[str, str]], **options: object) -> str:
        assert options["chat_template"]
        thinks = "" if options.get("enable_thinking", True) else "(no thinking)"
        return "".join(f"<{one['role']}>{one['content']}" for one in chat) + thinks


def plain_text(rng: random.Random) -> str:
    return "The answer is " + " ".join(rng.sample(PLAIN_WORDS, 8)) + "."


def behaviours(**described: object) -> dict[str, Behaviour]:
    return Behaviours.model_validate({"behaviours": described}).behaviours


def replies(name: str | None, texts: Iterator[str] | list[str]) -> list[Written]:
    return [Written(Asked(question, name), text) for question, text in zip(QUESTIONS, texts, strict=False)]


def plain(count: int = 40) -> list[Written]:
    rng = random.Random(0)
    return replies(None, [plain_text(rng) for _ in range(count)])


def test_replies_count_if_their_check_says_so(tmp_path: object) -> None:
    asked = behaviours(
        french={"instruction": "In French.", "check": "french", "without": ["loud"]},
        loud={"instruction": "Shout!", "check": "exclamations"},
    )
    french = [FRENCH.format(f"Numéro {k}.") for k in range(25)]
    french[0] = "No, I would rather answer this in English, as always."
    french[1] = "oui oui oui oui oui oui"
    french[2] = "Je pense que la mer est belle ! Le sable est doux et il est chaud !"
    loud = [f"What a day it is! I love number {k} so much!" for k in range(25)]
    written = [*plain(), *replies("french", french), *replies("loud", loud)]
    found = select(written, asked, checks_of(asked, NO_VERDICTS))
    counts = found.counts
    assert vars(counts[PLAIN]) == {
        "written": 40, "broken": 0, "not_shown": 0, "contradicting": 0, "kept": 40
    }  # fmt: skip
    assert vars(counts["french"]) == {
        "written": 25, "broken": 1, "not_shown": 1, "contradicting": 1, "kept": 22
    }  # fmt: skip
    assert counts["loud"].kept == 25
    assert list(found.checks) == ["french", "loud"]
    kept = {reply.text for reply in found.kept}
    assert not kept & set(french[:3])
    assert selection_table(found).row_count == 3


def test_a_reply_is_labelled_with_all_it_shows_and_stands_under_the_plain_question() -> None:
    asked = behaviours(
        french={"instruction": "In French.", "check": "french"},
        loud={"instruction": "Shout!", "check": "exclamations"},
    )
    french = ["Je pense que la mer est belle ! Le sable est doux, et il est chaud !"] * 12
    loud = [f"What a day it is! I love number {k} so much!" for k in range(12)]
    written = [*plain(), *replies("french", french), *replies("loud", loud)]
    found = select(written, asked, checks_of(asked, NO_VERDICTS))
    rows = found.rows(PromptForm(FakeTokenizer(), TemplateChoice()))
    assert [row.labels for row in rows].count(("french", "loud")) == 12
    assert [row.labels for row in rows].count(()) == 40
    assert {row.prompt for row in rows} == {f"<user>{question}" for question in QUESTIONS}


def test_without_a_check_replies_count_that_are_told_apart_on_held_out_questions() -> None:
    asked = behaviours(seaside="Mention the sea.")
    rng = random.Random(1)
    sea = [f"{plain_text(rng)} The waves of the sea roll in." for _ in range(30)]
    ignored = [plain_text(rng) for _ in range(6)]
    found = select([*plain(), *replies("seaside", sea + ignored)], asked, {})
    assert found.checks["seaside"].by == "words"
    assert 28 <= found.counts["seaside"].kept <= 31
    assert "balanced accuracy" in found.notes["seaside"]
    said = [Written(Asked("Why?", "seaside"), text) for text in (sea[0], ignored[0])]
    assert found.checks["seaside"].shown(said) == [True, False]


def test_an_instruction_that_changes_nothing_stops_with_the_reason() -> None:
    asked = behaviours(warm="Be warm.")
    rng = random.Random(2)
    written = [*plain(), *replies("warm", [plain_text(rng) for _ in range(40)])]
    with pytest.raises(DataError) as error:
        select(written, asked, {})
    assert "warm: its replies cannot be told from others by their words" in str(error.value)
    assert "the model does not follow the instruction" in str(error.value)


def test_a_behaviour_that_is_hardly_ever_shown_is_left_out_with_its_replies() -> None:
    asked = behaviours(
        french={"instruction": "In French.", "check": "french"},
        loud={"instruction": "Shout!", "check": "exclamations"},
    )
    loud = [f"What a day it is! I love number {k} so much!" for k in range(9)]
    french = [FRENCH.format(f"Numéro {k}.") for k in range(20)]
    written = [*plain(), *replies("french", french), *replies("loud", loud)]
    found: Selection = select(written, asked, checks_of(asked, NO_VERDICTS))
    assert list(found.checks) == ["french"]
    assert found.left_out["loud"].startswith(
        "9 of 9 replies show it when asked to, and at least 10 are needed"
    )
    assert not any(reply.asked.behaviour == "loud" for reply in found.kept)
    with pytest.raises(DataError, match="no probe can be fitted to any of them: loud: 9 of 9"):
        select(
            [*plain(), *replies("loud", loud)],
            {"loud": asked["loud"]},
            {"loud": checks_of(asked, NO_VERDICTS)["loud"]},
        )


def test_separation_is_of_the_reply_and_not_of_the_question() -> None:
    """A classifier that saw replies to the same question would find these, by what the question is about."""
    rng = random.Random(3)
    texts, shown, questions = [], [], []
    for number in range(60):
        topic = f"topic{number}"
        for meant in (True, False):
            texts.append(f"{plain_text(rng)} {topic} {topic}")
            shown.append(meant)
            questions.append(topic)
    found = separate(texts, shown, questions)
    assert found is not None
    assert not found.separable
    assert separate(texts[:6], shown[:6], questions[:6]) is None


def test_phrasings_take_turns_and_every_request_has_a_seed() -> None:
    asked = behaviours(kind=["Be kind.", "Be very kind."])
    form = PromptForm(FakeTokenizer(), TemplateChoice(arguments={"enable_thinking": False}))
    jobs = fitting_jobs(form, asked, ["Why?", "How?"], samples=2, seed=7)
    assert len({job.seed for _, job in jobs}) == len(jobs) == 8
    assert [job.prompt for who, job in jobs if who.behaviour == "kind"] == [
        "<user>Why? Be kind.(no thinking)",
        "<user>Why? Be very kind.(no thinking)",
        "<user>How? Be kind.(no thinking)",
        "<user>How? Be very kind.(no thinking)",
    ]
    assert jobs[0][1].prompt == "<user>Why?(no thinking)"
    assert form.described()["chat_template_kwargs"] == {"enable_thinking": False}
    raw = PromptForm(FakeTokenizer(), TemplateChoice(raw=True))
    assert raw.instructed("Be kind.", "Why?") == "Why? Be kind."
    assert raw.described() == {"raw": True}
