"""Files of every kind people have: how they are read, and what a file that is not read is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from ksteer_vllm.data.opening import open_task
from ksteer_vllm.data.tables import Columns
from ksteer_vllm.errors import DataError, UsageError

FRAME = pd.DataFrame(
    {
        "prompt": ["Où est-ce?", "Why; then, how?"],
        "reply": ["Très près.", 'So "it" is\tnow.'],
        "label": ["warm", "dry"],
    }
)
WANTED = list(FRAME.itertuples(index=False, name=None))


def said(path: Path, **options: Any) -> list[tuple[Any, str | None, str]]:
    return [(row.prompt, row.reply, *row.labels) for row in open_task(path, **options).rows]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_marks(tmp_path: Path, suffix: str, separator: str, encoding: str) -> None:
    path = tmp_path / f"data{suffix}"
    FRAME.to_csv(path, index=False, sep=separator, encoding=encoding)
    assert said(path) == WANTED


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.json"])
def test_an_encoding_is_named_never_guessed(tmp_path: Path, name: str) -> None:
    path, records = tmp_path / name, FRAME.to_dict("records")
    text = {
        "data.csv": FRAME.to_csv(index=False),
        "data.jsonl": "\n".join(json.dumps(one, ensure_ascii=False) for one in records),
        "data.json": json.dumps(records, ensure_ascii=False),
    }[name]
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name}: line \d: byte 0xf9 .* as utf-8; .*--encoding cp1252"):
        open_task(path)
    assert said(path, encoding="latin-1") == said(path, encoding="cp1252") == WANTED
    with pytest.raises(DataError, match="encoding: unknown 'martian'"):
        open_task(path, encoding="martian")
    with pytest.raises(UsageError, match="encoding: only files have one, not 'demo'"):
        open_task("demo", encoding="utf-8")


def test_parquet_with_chats_and_lists(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    FRAME.set_index(pd.Index([3, 4])).to_parquet(tmp_path / "table.parquet")
    assert said(tmp_path / "table.parquet") == WANTED
    chat = [{"role": "user", "content": "How?"}]
    rows = pd.DataFrame({"prompt": [chat, chat], "response": ["A", "B"], "labels": [["warm"], []]})
    rows.to_parquet(tmp_path / "rows.parquet")
    found = open_task(tmp_path / "rows.parquet").rows
    assert [(row.prompt[-1].content, row.reply, row.labels) for row in found] == [
        ("How?", "A", ("warm",)), ("How?", "B", ()),
    ]  # fmt: skip
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet: "):
        open_task(tmp_path / "broken.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow: pip install pyarrow; or save it as"):
        open_task(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("t.xlsx", "save the sheet as CSV"),
        ("t.XLS", "save the sheet as CSV"),
        ("t.txt", "make a .csv of it"),
        ("t.jsonl.gz", "unpack it"),
        ("t.pkl", "never loaded: save it as .parquet"),
        ("t.yaml", "export it as .jsonl or .csv"),
        ("t", r"hub:owner/name\)$"),
    ],
)
def test_other_kinds_are_answered_with_a_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=remedy):
        open_task(tmp_path / name)


@pytest.mark.parametrize(
    "header", ["Prompt,Reply,Label", "prompt, reply , label", "TEXT,Output,label", ",prompt,reply,label"]
)
def test_headers_as_people_write_them(tmp_path: Path, header: str) -> None:
    index = ("0,", "1,") if header.startswith(",") else ("", "")
    (tmp_path / "t.csv").write_text(f"{header}\n{index[0]}How?,So.,dry\n{index[1]}Why?,Dear!,warm\n")
    found = open_task(tmp_path / "t.csv")
    assert [(r.prompt, r.reply, r.labels) for r in found.rows] == [
        ("How?", "So.", ("dry",)), ("Why?", "Dear!", ("warm",)),
    ]  # fmt: skip
    assert found.unused == ()


@pytest.mark.parametrize("name", ["response", "completion", "answer", "output"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_rows_with_a_list_of_labels_may_call_the_reply_so_too(tmp_path: Path, name: str, suffix: str) -> None:
    records = [{"text": "How?", name: "So.", "labels": ["dry"]}, {"text": "Why?", name: "Oh!", "labels": []}]
    path = tmp_path / f"t{suffix}"
    path.write_text(json.dumps(records) if suffix == ".json" else "\n".join(map(json.dumps, records)))
    assert [(row.prompt, row.reply) for row in open_task(path).rows] == [("How?", "So."), ("Why?", "Oh!")]


def table(tmp_path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


TWELVE = {"prompt": [f"Question {n}?" for n in range(12)]}
KINDS = ["warm", "dry"] * 6


def test_a_column_of_text_is_no_column_of_labels(tmp_path: Path) -> None:
    path = table(tmp_path, **TWELVE, kind=KINDS, source=["web", "book", "web"] * 4)
    few = "column 'kind': the same few values over and over .dry, warm.; .*--label-column kind"
    with pytest.raises(DataError, match=few):
        open_task(path)
    found = open_task(path, columns=Columns(label="kind", ignore=("source",)))
    assert found.labels == ("dry", "warm")
    with pytest.raises(DataError, match=r"column 'label': 12 different values in 12 rows .* name no labels"):
        open_task(table(tmp_path, **TWELVE, label=[f"a text {n}" for n in range(12)]))
    names = [f"id-{n}" for n in range(12)]
    with pytest.raises(DataError, match=r"column 'id': single words .'id-0'.*--ignore-columns id"):
        open_task(table(tmp_path, **TWELVE, warm=[f"Dear {n}" for n in range(12)], id=names))
    mixed = r"row 1, column 'bot': got 'Well, 0'; .*--reply-column bot if it holds the replies"
    with pytest.raises(DataError, match=mixed):
        open_task(table(tmp_path, **TWELVE, bot=[f"Well, {n}" for n in range(12)], warm=[1, 0] * 6))


@pytest.mark.parametrize("extra", [["bot"], ["bot", "my id"]])
def test_a_column_that_nothing_reads_is_named_and_refused(tmp_path: Path, extra: list[str]) -> None:
    path = table(
        tmp_path, **TWELVE, label=KINDS, **{name: [f"Well, {n}" for n in range(12)] for name in extra}
    )
    assert open_task(path).unused == tuple(extra)
    assert open_task(path, columns=Columns(ignore=tuple(extra))).unused == ()
    for command in (["fit"], ["layers"]):
        result = CliRunner().invoke(app, [*command, "m", str(path), "--out", str(tmp_path / "out")])
        assert result.exit_code == 2
        message = " ".join(result.output.split())
        assert all(repr(name) in message for name in extra)
        typed = "bot" if len(extra) == 1 else "'bot,my id'"
        assert f"--ignore-columns {typed}), or say what" in message
        assert "--reply-column" in message


def test_label_columns_that_were_not_chosen_are_not_unused(tmp_path: Path) -> None:
    path = table(tmp_path, **TWELVE, warm=[1, 0] * 6, dry=[0, 1] * 6, id=range(12))
    assert open_task(path, labels=["warm"]).unused == ("id",)
    with pytest.raises(DataError, match="no column 'idd' to ignore; it has: prompt, warm, dry, id"):
        open_task(path, columns=Columns(ignore=("idd",)))


def test_a_field_of_a_row_can_be_ignored(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "reply": "r", "labels": ["a"] * (n % 2), "id": n} for n in range(2)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"line 1: id: unknown field; .*--ignore-columns id leaves it out"):
        open_task(tmp_path / "t.jsonl")
    assert len(open_task(tmp_path / "t.jsonl", columns=Columns(ignore=("id",))).rows) == 2
