"""Tables as labelled rows: what is read from data frames and files, and what is refused by row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.opening import open_task
from ksteer_vllm.data.rows import LabelledRow, Message
from ksteer_vllm.data.tables import Columns
from ksteer_vllm.errors import DataError

FRAME = {"prompt": ["How?", "Why?", "Who?"], "warm": [True, False, True], "dry": [False, True, True]}


def _said(dataset: TaskDataset) -> list[tuple[Any, str | None, tuple[str, ...]]]:
    return [(row.prompt, row.reply, row.labels) for row in dataset.rows]


def _refused(match: str, **columns: Any) -> None:
    with pytest.raises(DataError, match=match):
        TaskDataset.from_pandas(pd.DataFrame(columns))


@pytest.mark.parametrize(
    ("true", "false"),
    [(True, False), (1, 0), (1.0, 0.0), ("yes", "No"), ("TRUE", "false"), (np.True_, np.False_)],
)
def test_one_column_per_label(true: Any, false: Any) -> None:
    cells = [[true if cell else false for cell in FRAME[name]] for name in ("warm", "dry")]
    frame = pd.DataFrame({**FRAME, "warm": cells[0], "dry": cells[1], "reply": ["a", "b", "c"]})
    dataset = TaskDataset.from_pandas(frame)
    assert dataset.labels == ("dry", "warm")
    assert _said(dataset) == [
        ("How?", "a", ("warm",)),
        ("Why?", "b", ("dry",)),
        ("Who?", "c", ("warm", "dry")),
    ]
    assert TaskDataset.from_pandas(frame, labels=["warm", "dry"]).labels == ("warm", "dry")


@pytest.mark.parametrize("name", ["reply", "response", "completion", "answer", "output"])
def test_replies_go_by_several_names(name: str) -> None:
    """A reply that is there must not be written again by the model."""
    frame = pd.DataFrame({"prompt": ["How?", "Why?"], name: ["So.", "Dear!"], "label": ["dry", "warm"]})
    said = _said(TaskDataset.from_pandas(frame))
    assert said == [("How?", "So.", ("dry",)), ("Why?", "Dear!", ("warm",))]


def test_two_columns_that_may_be_the_replies() -> None:
    columns = {
        "prompt": ["How?", "Why?"], "label": ["dry", "warm"], "answer": ["A", "B"], "output": ["C", "D"],
    }  # fmt: skip
    _refused(r"columns answer, output may each hold the replies; .*--reply-column", **columns)
    chosen = TaskDataset.from_pandas(pd.DataFrame(columns), reply="output")
    assert [row.reply for row in chosen.rows] == ["C", "D"]


def test_a_label_column_may_hold_the_replies_that_show_the_label() -> None:
    frame = pd.DataFrame(
        {"Q": ["How?", "Why?"], "warm": ["Dear!", "Oh!"], "dry": ["So.", "Thus."], "id": [7, 8]}
    )
    dataset = TaskDataset.from_pandas(frame, prompt="Q", labels=["warm", "dry"])
    assert _said(dataset) == [
        ("How?", "Dear!", ("warm",)),
        ("How?", "So.", ("dry",)),
        ("Why?", "Oh!", ("warm",)),
        ("Why?", "Thus.", ("dry",)),
    ]


def test_text_and_label() -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": ["warm", "dry", " warm "]})
    dataset = TaskDataset.from_pandas(frame)
    assert _said(dataset) == [("a", None, ("warm",)), ("b", None, ("dry",)), ("c", None, ("warm",))]
    renamed = frame.rename(columns={"text": "sentence", "label": "class"})
    assert TaskDataset.from_pandas(renamed, text="sentence", label="class").rows == dataset.rows
    numbers = pd.DataFrame({"text": ["a", "b"], "label": [1, 0]})
    assert TaskDataset.from_pandas(numbers).labels == ("0", "1")


def test_a_system_column_or_chat_makes_the_prompt_a_chat() -> None:
    user = Message(role="user", content="How?")
    frame = pd.DataFrame({"prompt": ["How?", "Why?"], "label": ["warm", "dry"]})
    assert TaskDataset.from_pandas(frame, chat=True).rows[0].prompt == (user,)
    with_system = TaskDataset.from_pandas(frame.assign(system=["Be warm.", "Be dry."]))
    assert with_system.rows[0].prompt == (Message(role="system", content="Be warm."), user)


def test_bad_cells_are_named_by_row_and_column() -> None:
    _refused("row 2, column 'warm': got 'maybe'; a label's column holds true or false",
             **{**FRAME, "warm": ["yes", "maybe", "no"]})  # fmt: skip
    _refused("row 3, column 'dry': empty", **{**FRAME, "dry": [True, False, None]})
    _refused("row 3, column 'dry': empty", **{**FRAME, "dry": [1, 0, float("nan")]})
    _refused("row 1, column 'id': got '7'.*name those that are", **{**FRAME, "id": [7, 8, 9]})
    _refused("row 2, column 'prompt': empty; fill it in, or drop the row",
             **{**FRAME, "prompt": ["a", " ", "c"]})  # fmt: skip
    _refused(
        "row 2, column 'prompt': expected a text, got '3'; name another column .--prompt-column",
        **{**FRAME, "prompt": ["a", 3, "c"]},
    )
    _refused("row 1, column 'reply': empty", **FRAME, reply=["", "b", "c"])
    _refused("row 2, column 'label': empty", text=["a", "b"], label=["warm", None])
    _refused("row 2, column 'warm': empty", prompt=["a", "b"], warm=["x", ""], dry=["y", "z"])
    _refused("row 1, column 'warm': got 'x'; a label's column holds true or false .* in every row; if",
             prompt=["a"], reply=["r"], warm=["x"], dry=["y"])  # fmt: skip


def test_bad_columns_are_named() -> None:
    _refused("no column 'prompt' or 'text'; it has: question, warm", question=["a"], warm=[True])
    _refused("no column for labels; it has: prompt, reply", prompt=["a"], reply=["b"])
    with pytest.raises(DataError, match="no column 'cold'; it has: prompt, warm, dry"):
        TaskDataset.from_pandas(pd.DataFrame(FRAME), labels=["cold"])
    with pytest.raises(DataError, match="prompt and text are one column"):
        TaskDataset.from_pandas(pd.DataFrame(FRAME), prompt="prompt", text="warm")
    twice = pd.DataFrame([["a", True, False]], columns=["prompt", "warm", "warm"])
    with pytest.raises(DataError, match="column 'warm' is there twice"):
        TaskDataset.from_pandas(twice)
    _refused("no rows", prompt=[], warm=[])


def test_texts_are_no_labels_unless_somebody_says_so(tmp_path: Path) -> None:
    """Neither by what such columns are called nor where nothing is beside them to compare with."""
    told = r"would be read as replies that show a label '{0}'; if .*--labels {0},.*--ignore-columns {0}"
    for name in ("context", "Notes", "text"):
        columns = {"prompt": ["a", "b"], name: ["Once.", "Twice."], "warm": ["Dear!", "Oh!"]}
        _refused(f"column '{name}': its texts .'Once.', ....* {told.format(name)}", **columns)
        frame = pd.DataFrame(columns)
        assert TaskDataset.from_pandas(frame, labels=[name, "warm"]).labels == (name, "warm")
        (tmp_path / "t.csv").write_text(frame.to_csv(index=False))
        with pytest.raises(DataError, match=told.format(name)):
            open_task(tmp_path / "t.csv")
    _refused(told.format("verse"), prompt=["a", "b"], verse=["Once.", "Twice."])
    flags = pd.DataFrame({"prompt": ["a", "b"], "text": [True, False], "warm": [False, True]})
    assert TaskDataset.from_pandas(flags).labels == ("text", "warm"), "true and false are no texts"


def test_one_label_only_is_refused() -> None:
    _refused("every row of data shows 'warm', so nothing tells it from other text; add rows",
             text=["a", "b"], label=["warm", "warm"])  # fmt: skip
    _refused("every row of data shows 'warm'", **{**FRAME, "warm": [1, 1, 1]})
    _refused("no row has a label", prompt=["a"], warm=[0])


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(
        '﻿prompt,reply,warm,dry\n"How, then?","So\nit is",1,0\n\nWhy?,Thus,0,1\n', encoding="utf-8"
    )
    dataset = open_task(path)
    assert dataset.name == "data.csv"
    assert _said(dataset) == [("How, then?", "So\nit is", ("warm",)), ("Why?", "Thus", ("dry",))]
    path.write_text("Q,id,warm,dry\nHow?,7,1,0\nWhy?,8,0,1\n")
    chosen = open_task(path, labels=["warm"], columns=Columns(prompt="Q"), chat=True)
    assert [row.labels for row in chosen.rows] == [("warm",), ()]
    assert chosen.rows[0].prompt == (Message(role="user", content="How?"),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prompt,warm,warm\na,1,0\n", "column 'warm' is there twice"),
        ("prompt,warm\na,1\nb,c,0\n", "row 2: 3 cells for the 2 columns"),
        ('prompt,warm\n"a,1\n', "not valid CSV"),
        ("", "no rows"),
        ("prompt,warm\n", "no rows"),
    ],
)
def test_a_bad_csv_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=f"bad.csv.*{problem}"):
        open_task(tmp_path / "bad.csv")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_holds_rows_pairs_or_a_table(tmp_path: Path, suffix: str) -> None:
    def written(*records: Any) -> Path:
        path = tmp_path / f"data{suffix}"
        lines = "".join(json.dumps(record) + "\n" for record in records)
        path.write_text(lines if suffix == ".jsonl" else json.dumps(records))
        return path

    row = {"prompt": "How?", "reply": "So.", "labels": ["dry"]}
    pair = {"prompt": "Why?", "positive": "Oh!", "negative": "Thus.", "label": "warm"}
    dataset = open_task(written(row, pair))
    assert _said(dataset) == [("How?", "So.", ("dry",)), ("Why?", "Oh!", ("warm",)), ("Why?", "Thus.", ())]
    assert open_task(written(row, pair), chat=True).rows[1].prompt == (Message(role="user", content="Why?"),)
    table = open_task(written({"text": "a", "label": "dry"}, {"text": "b", "label": "warm"}))
    assert _said(table) == [("a", None, ("dry",)), ("b", None, ("warm",))]
    place = "line 2" if suffix == ".jsonl" else "row 2"
    for bad, problem in (({**row, "reply": " "}, "reply: empty"), ({**row, "x": 1}, "x: unknown field")):
        with pytest.raises(DataError, match=f"{place}: {problem}"):
            open_task(written(row, bad))
    with pytest.raises(DataError, match=f"{place}: expected an object, got list"):
        open_task(written(row, [1]))


def test_a_column_that_is_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.jsonl").write_text('{"text": "a", "label": "x", "label": "y"}\n')
    with pytest.raises(DataError, match="line 1: column 'label' is there twice"):
        open_task(tmp_path / "twice.jsonl")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: No such file"):
        open_task(tmp_path / "absent.jsonl")
    listed = r"(?s)not a file that can be read \(.jsonl, .json, .csv, .*\).*tones.*hub:.*save the sheet"
    with pytest.raises(DataError, match=listed):
        open_task("data.xlsx")
    (tmp_path / "one.json").write_text('{"prompt": "a"}')
    with pytest.raises(DataError, match="expected a list of objects, got dict"):
        open_task(tmp_path / "one.json")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary.csv: .*decode"):
        open_task(tmp_path / "binary.csv")


SEPARATORS = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(f'text,label\r\n{SEPARATORS},dry\r\n"x\r\ny",warm\r\n'.encode())
    assert _said(open_task(tmp_path / "t.csv")) == [
        (SEPARATORS, None, ("dry",)),
        ("x\r\ny", None, ("warm",)),
    ]
    records = [{"text": SEPARATORS, "label": "dry"}, {"text": "b", "label": "warm"}]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "t.jsonl").write_text(lines, encoding="utf-8")
    assert [row.prompt for row in open_task(tmp_path / "t.jsonl").rows] == [SEPARATORS, "b"]


def test_labels_may_be_called_positive_and_negative(tmp_path: Path) -> None:
    assert TaskDataset.from_pandas(
        pd.DataFrame({"prompt": ["a", "b"], "positive": [1, 0], "negative": [0, 1]})
    ).labels == ("negative", "positive")
    replies = pd.DataFrame({"Q": ["a"], "positive": ["Good."], "negative": ["Bad."]})
    assert _said(TaskDataset.from_pandas(replies, prompt="Q")) == [
        ("a", "Good.", ("positive",)),
        ("a", "Bad.", ("negative",)),
    ]
    (tmp_path / "t.csv").write_text("prompt,positive,negative\na,yes,no\nb,no,yes\n")
    assert [row.labels for row in open_task(tmp_path / "t.csv").rows] == [("positive",), ("negative",)]
    pairs = pd.DataFrame({"prompt": ["a"], "positive": ["x"], "negative": ["y"], "label": ["warm"]})
    assert _said(TaskDataset.from_pandas(pairs)) == [("a", "x", ("warm",)), ("a", "y", ())]
    assert TaskDataset.from_pandas(pairs, labels=["warm"]).rows == TaskDataset.from_pandas(pairs).rows
    table = TaskDataset.from_pandas(pd.concat([pairs, pairs.assign(label="dry")]), reply="negative")
    assert _said(table) == [("a", "y", ("warm",)), ("a", "y", ("dry",))]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_rows_are_numbered_as_in_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    records = [{"prompt": f"p{n}", "warm": f"w{n}", "dry": f"d{n}"} for n in range(2)]
    if suffix == ".csv":
        pd.DataFrame(records).to_csv(path, index=False)
    else:
        lines = "\n\n".join(map(json.dumps, records))
        path.write_text(json.dumps(records) if suffix == ".json" else lines)
    assert [(row.reply, row.number) for row in open_task(path).rows] == [
        ("w0", 1), ("d0", 1), ("w1", 2), ("d1", 2)
    ]  # fmt: skip


def test_what_is_read_from_no_file_is_numbered_in_its_order() -> None:
    rows = [LabelledRow(prompt=p, labels=(p,)) for p in ("a", "b")]
    assert [row.number for row in TaskDataset.of("data", rows[::-1]).rows] == [1, 2]


@pytest.mark.parametrize("command", ["fit", "layers"])
def test_the_command_line_names_columns_and_splits(tmp_path: Path, command: str) -> None:
    def refused(data: Any, *options: str) -> str:
        arguments = [command, "model", str(data), "--out", str(tmp_path / "out"), *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        return " ".join(result.output.split())

    path = tmp_path / "t.csv"
    path.write_text("Q,A,kind\nHow?,,warm\n")
    assert "name the column that holds the prompts (--prompt-column)" in refused(path)
    assert "no column 'A2'; it has: Q, A, kind" in refused(
        path, "--prompt-column", "Q", "--reply-column", "A2"
    )
    named = ("--prompt-column", "Q", "--label-column", "kind")
    assert "row 1, column 'A': empty" in refused(path, *named, "--reply-column", "A")
    assert "every row of t.csv shows 'warm'" in refused(path, *named)
    assert "split: only data of the hub has splits" in refused(path, "--split", "test")
    assert "columns: 'demo' is not a table" in refused("demo", "--prompt-column", "Q")
