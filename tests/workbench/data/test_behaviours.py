"""Files of behaviours: what they may say, and what is said of those that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksteer_vllm.data.behaviours import EndpointCheck, read_behaviours, shipped_questions
from ksteer_vllm.data.readers import NAMED
from ksteer_vllm.errors import DataError
from tests.support.programs import ROOT


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "behaviours.yaml"
    path.write_text(text, encoding="utf-8")
    return read_behaviours(path)


def test_a_file_in_full(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("Why?\n\n  How come?  \n", encoding="utf-8")
    path = tmp_path / "b.yaml"
    path.write_text(
        """
behaviours:
  french: {instruction: [Answer in French., Réponds en français.], check: french, without: [loud]}
  loud: Shout!
  kind:
    instruction: Be kind.
    check: {judge: {url: "http://localhost:8000/v1", model: m}}
questions: ask.txt
options: {max_tokens: 32}
""",
        encoding="utf-8",
    )
    found = read_behaviours(path)
    assert found.names == ("french", "loud", "kind")
    assert found.questions == ("Why?", "How come?")
    assert found.options == {"max_tokens": 32}
    french, loud, kind = found.behaviours.values()
    assert french.instruction == ("Answer in French.", "Réponds en français.")
    assert french.reader is NAMED["french"]
    assert french.without == ("loud",)
    assert (loud.instruction, loud.reader, loud.endpoint) == (("Shout!",), None, None)
    assert kind.reader is None
    assert kind.endpoint == EndpointCheck(url="http://localhost:8000/v1", model="m")


def test_the_shipped_questions_are_many_short_and_plain(tmp_path: Path) -> None:
    questions = shipped_questions()
    assert len(set(questions)) == len(questions) >= 110
    assert all(question.endswith("?") and len(question.split()) <= 16 for question in questions)
    shown = {name for question in questions for name, reader in NAMED.items() if reader.shows(question)}
    assert shown <= {"english", "first person", "only questions"}
    assert read(tmp_path, "behaviours: {loud: Shout!}").questions == questions  # type: ignore[attr-defined]


def test_the_example_can_be_read() -> None:
    found = read_behaviours(ROOT / "examples" / "behaviours.yaml")
    assert len(found.names) == 3
    assert all(behaviour.reader is not None for behaviour in found.behaviours.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just words", "expected `behaviours:` and what each is, got str"),
        ("behaviours: [", "not valid YAML"),
        ("{}", "behaviours: Field required"),
        ("behaviours: {}", "behaviours: Dictionary should have at least 1 item"),
        ("behaviours: {a: {check: french}}", "behaviours.a.instruction: Field required"),
        ("behaviours: {a: ' '}", "behaviours.a.instruction.0: String should match"),
        (
            "behaviours: {a: {instruction: x, checks: french}}",
            "a.checks: unknown field; allowed: instruction",
        ),
        ("behaviours: {a: x}\nquestion: [y]", "question: unknown field; allowed: behaviours, questions"),
        ("behaviours: {a: {instruction: x, check: klingon}}", "a.check: unknown reader 'klingon'"),
        ("behaviours: {a: {instruction: x, check: {regex: '('}}}", "a.check: regex: pattern: not a regular"),
        ("behaviours: {a: {instruction: x, check: {judge: {}}}}", "a.check: judge: url: Field required"),
        (
            "behaviours: {a: {instruction: x, check: {judge: {url: u}, words: {max: 3}}}}",
            "a.check: a judge stands alone",
        ),
        ("behaviours: {a: {instruction: x, without: [b]}}", "behaviours.a.without: unknown 'b'"),
        ("behaviours: {a: x}\nquestions: none.txt", "none.txt: No such file"),
        ("behaviours: {a: x}\nquestions: [y, y]", "questions: asked twice: 'y'"),
        ("behaviours: {a: x}\nquestions: []", "questions: Value should have at least 1 item"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_behaviours(tmp_path / "none.yaml")
