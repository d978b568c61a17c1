"""Labelled text: what is read, and what is refused by row and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.data.opening import open_task
from ksteer_vllm.data.rows import LabelledRow, data_digest, labels_of, read_rows, row_name, write_rows
from ksteer_vllm.data.split import check_labels, targets_of, without_instruction
from ksteer_vllm.errors import DataError
from ksteer_vllm.experiments.suite.fit import fit_suite
from ksteer_vllm.experiments.suite.plan import SuitePlan
from tests.support.engines import OPTIONS
from tests.workbench.fit.conftest import make_rows

GOOD: dict[str, Any] = {"prompt": "How?", "reply": "So.", "labels": ["dry"]}
PAIR: dict[str, Any] = {"prompt": "How?", "positive": "So.", "negative": "Oh, so!", "label": "dry"}


def _write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": "Wie geht’s?"}]
    path = _write(tmp_path / "in.jsonl", GOOD, "", {"prompt": chat, "reply": "…", "labels": []})
    rows = read_rows(path)
    assert [row.labels for row in rows] == [("dry",), ()]
    assert rows[1].prompt[1].content == "Wie geht’s?"  # type: ignore[union-attr]
    assert read_rows(write_rows(tmp_path / "out.jsonl", rows)) == rows
    assert data_digest(rows) == data_digest(read_rows(tmp_path / "out.jsonl")) != data_digest(rows[::-1])


def test_a_contrast_pair_is_two_rows(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "How?"}]
    rows = read_rows(_write(tmp_path / "pairs.jsonl", PAIR, GOOD, {**PAIR, "prompt": chat, "label": "warm"}))
    assert [(row.reply, row.labels) for row in rows] == [
        ("So.", ("dry",)),
        ("Oh, so!", ()),
        ("So.", ("dry",)),
        ("So.", ("warm",)),
        ("Oh, so!", ()),
    ]
    assert rows[0].prompt == rows[1].prompt == "How?"
    assert rows[3].prompt == rows[4].prompt == LabelledRow.model_validate({**GOOD, "prompt": chat}).prompt


def test_a_row_may_be_without_a_reply(tmp_path: Path) -> None:
    without = {"prompt": "How?", "labels": ["dry"]}
    (row, same) = read_rows(_write(tmp_path / "in.jsonl", without, {**without, "reply": None}))
    assert row == same
    assert row.reply is None
    assert read_rows(write_rows(tmp_path / "out.jsonl", [row])) == [row]
    with pytest.raises(DataError, match="reply: missing; have replies generated"):
        _ = row.spoken


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "not valid JSON"),
        ([1], "expected an object"),
        ({**GOOD, "reply": "  "}, "reply: empty"),
        ({**GOOD, "prompt": ""}, "prompt: empty"),
        ({**GOOD, "prompt": []}, "prompt: empty"),
        ({**GOOD, "prompt": [{"role": "user"}]}, "message 0: Field required"),
        ({**GOOD, "prompt": 3}, "prompt: expected a text or a list of messages"),
        ({**GOOD, "labels": "dry"}, "labels: "),
        ({**GOOD, "labels": ["dry", "dry"]}, "labels: a label is named twice"),
        ({**GOOD, "labels": [""]}, "labels: "),
        ({**GOOD, "label": "dry"}, "label: unknown field; allowed: prompt, reply, labels"),
        ({"prompt": "How?", "reply": "So."}, "labels: required"),
        ({**GOOD, "reply": ""}, "reply: empty"),
        ({**PAIR, "negative": " "}, "negative: empty"),
        ({**PAIR, "prompt": ""}, "prompt: empty"),
        ({**PAIR, "label": ""}, "label: "),
        ({**PAIR, "reply": "So."}, "reply: unknown field; allowed: prompt, positive, negative, label"),
        ({"prompt": "How?", "positive": "So.", "label": "dry"}, "negative: required"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(tmp_path: Path, row: Any, problem: str) -> None:
    path = _write(tmp_path / "bad.jsonl", GOOD, row)
    with pytest.raises(DataError, match="line 2: ") as caught:
        read_rows(path)
    assert problem in str(caught.value)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no rows"):
        read_rows(_write(tmp_path / "empty.jsonl", ""))


def test_labels_are_sorted_or_as_given() -> None:
    rows = [LabelledRow(prompt="a", reply="b", labels=labels) for labels in (("dry", "warm"), ("cold",))]
    assert labels_of(rows) == ("cold", "dry", "warm")
    assert labels_of(rows, ["warm", "cold"]) == ("warm", "cold")
    with pytest.raises(DataError, match="hot in no row; the data has: cold, dry, warm"):
        labels_of(rows, ["hot"])
    with pytest.raises(DataError, match="named twice"):
        labels_of(rows, ["dry", "dry"])
    with pytest.raises(DataError, match="no row has a label"):
        labels_of([LabelledRow(prompt="a", reply="b", labels=())])


SEPARATORS = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\r\nh\ri"


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    rows = [
        LabelledRow(prompt=SEPARATORS, reply=f"{SEPARATORS}.", labels=("dry",)),
        LabelledRow(prompt="How?", reply="So.", labels=()),
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(path) == rows
    assert data_digest(read_rows(path)) == data_digest(rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_rows(path) == rows


def test_a_rows_number_is_no_part_of_it(tmp_path: Path) -> None:
    plain, pair, last = read_rows(_write(tmp_path / "in.jsonl", GOOD, "", PAIR))
    assert [row.number for row in (plain, pair, last)] == [1, 2, 2]
    copy = without_instruction(pair).model_copy(update={"reply": "Thus."})
    assert (copy.number, row_name(copy, 6)) == (2, "row 2")
    other = LabelledRow.model_validate(GOOD)
    assert (other.number, row_name(other, 6)) == (None, "row 7")
    assert plain == other != last
    assert hash(plain) == hash(other)
    assert data_digest([plain]) == data_digest([other])
    assert json.loads(write_rows(tmp_path / "out.jsonl", [pair]).read_text()).keys() == GOOD.keys()


def test_a_row_of_a_half_is_named_by_its_row_in_the_file(llama: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "words.jsonl", rows := make_rows(120))
    half = open_task(path).partition(0).steering
    numbers = [row.number for row in half]
    assert [rows[number - 1] for number in numbers if number] == list(half)
    long = numbers[30] or 0
    assert long > 31
    rows[long - 1] = rows[long - 1].model_copy(update={"reply": "w20 " * 400})
    dataset = open_task(write_rows(path, rows))
    engine = {name: value for name, value in OPTIONS.items() if name != "disable_log_stats"}
    with pytest.raises(DataError, match=rf"caa: row {long}: prompt and reply have 4\d\d tokens"):
        fit_suite(str(llama), dataset, tmp_path / "suite", SuitePlan(methods=("caa",)), engine_options=engine)


def test_too_few_rows_are_named_by_their_numbers() -> None:
    rows = [
        LabelledRow(prompt=f"p{n}", reply="x", labels=("dry",) if n < 3 else ()).numbered(2 * n + 5)
        for n in range(30)
    ]
    with pytest.raises(DataError, match=r"3 rows with 'dry' \(row 5, 7, 9\); at least 10"):
        check_labels(targets_of(rows, ["dry"]), ["dry"], rows=rows)
    with pytest.raises(DataError, match=r"\(row 1, 2, 3\)"):
        check_labels(targets_of(rows, ["dry"]), ["dry"])
