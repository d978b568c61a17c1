"""The tasks with a name, and data sets of the hub; nothing here reaches for the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.data import hub
from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.opening import open_task
from ksteer_vllm.data.rows import Message
from ksteer_vllm.data.styles import DEBATES, TONES
from ksteer_vllm.demo.lexicon import TONES as DEMO_TONES
from ksteer_vllm.demo.task import labelled_text
from ksteer_vllm.errors import DataError, UsageError


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    texts = [*(f"Question {number}?" for number in range(40)), "Question 3?"]
    path.write_text("".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts)))
    return path


@pytest.mark.parametrize(("name", "styles", "count"), [("tones", TONES, 6), ("debates", DEBATES, 10)])
def test_every_question_is_asked_in_every_style(
    questions: Path, name: str, styles: dict[str, str], count: int
) -> None:
    dataset = open_task(name, questions=questions)
    assert dataset.labels == tuple(styles)
    assert len(dataset.rows) == 40 * count
    assert {row.reply for row in dataset.rows} == {None}
    for row, (label, instruction) in zip(dataset.rows[:count], styles.items(), strict=True):
        assert row.labels == (label,)
        assert row.prompt == (
            Message(role="system", content=instruction),
            Message(role="user", content="Question 0?"),
        )
    assert len(dataset.partition(0).steering) == 16 * count
    assert len(open_task(name, questions=questions, max_questions=25).rows) == 25 * count
    numbers = [row.number for row in dataset.rows]
    assert numbers == sorted(list(range(1, 41)) * count)
    first = next(iter(styles))
    assert open_task(name, questions=questions, labels=[first]).labels == (first,)


def test_instructions_are_all_different() -> None:
    for styles in (TONES, DEBATES):
        assert len(set(styles.values())) == len(styles)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("q.csv", "topic\na\n", "no column text, question, prompt; it has: topic"),
        ("q.json", '[{"text": "a"}, {"text": ""}]', "row 2, column 'text': empty"),
        ("q.jsonl", "", "no rows"),
        ("q.txt", "a", "q.txt: not a file that can be read .*.csv.*plain text says no labels"),
    ],
)
def test_bad_questions_are_refused(tmp_path: Path, file: str, text: str, problem: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=problem):
        open_task("tones", questions=tmp_path / file)


def test_questions_are_of_predefined_tasks_only(questions: Path) -> None:
    with pytest.raises(UsageError, match="only the tasks tones, debates take them, not 'demo'"):
        open_task("demo", questions=questions)


def test_the_demo_task_is_the_demos_text() -> None:
    dataset = open_task("demo")
    assert dataset.rows == tuple(labelled_text())
    assert dataset.labels == DEMO_TONES
    assert dataset.judge == "reader"
    partition = dataset.partition(0)
    assert partition.prompts == dataset.prompts
    assert {part: len(found) for part, found in partition.prompts.items()} == {
        "calibration": 100,
        "evaluation": 100,
    }
    assert len(partition.steering) + len(partition.evaluation) == len(dataset.rows)


class TestHub:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
        """Writes a data set folder with one Parquet file."""
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

        def write(rows: list[dict[str, Any]], features: Any = None) -> Path:
            path = tmp_path / "set"
            path.mkdir(exist_ok=True)
            datasets.Dataset.from_list(rows, features=features).to_parquet(path / "train.parquet")
            return path

        return write

    def test_tables_rows_and_class_names(self, folder: Callable[..., Path]) -> None:
        from datasets import ClassLabel, Features, Value

        features = Features({"text": Value("string"), "label": ClassLabel(names=["dry", "warm"])})
        path = folder([{"text": "a", "label": 1}, {"text": "b", "label": 0}], features)
        dataset = open_task(f"hub:{path}")
        assert [(row.prompt, row.labels) for row in dataset.rows] == [("a", ("warm",)), ("b", ("dry",))]
        assert TaskDataset.from_hub(str(path)).rows == dataset.rows
        with pytest.raises(DataError, match=r"split 'test': .*Unknown split"):
            open_task(f"hub:{path}", split="test")

    def test_chats(self, folder: Callable[..., Path]) -> None:
        chat = [{"role": "user", "content": "How?"}]
        path = folder([{"prompt": chat, "reply": "So.", "labels": ["dry"]},
                       {"prompt": chat, "reply": "Oh!", "labels": []}])  # fmt: skip
        dataset = open_task(f"hub:{path}")
        assert [(row.reply, row.labels) for row in dataset.rows] == [("So.", ("dry",)), ("Oh!", ())]
        assert dataset.rows[0].prompt == (Message(role="user", content="How?"),)

    def test_unknown_names_are_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("datasets")
        with pytest.raises(DataError, match=r"no data set '.*absent'.*names are owner/name"):
            open_task(f"hub:{tmp_path / 'absent'}")

    def test_without_the_hub_a_file_is_named_as_the_way_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        tried = []

        def unreachable(name: str, **_: Any) -> Any:
            tried.append(name)
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
        with pytest.raises(DataError, match=r"cannot be loaded .*OfflineModeIsEnabled.*local file"):
            open_task("hub:someone/something")
        with pytest.raises(DataError, match=r"tones: hub: .*--questions FILE"):
            open_task("tones")
        assert tried == [
            "someone/something",
            "Narmeen07/tone_agnostic_questions",
            "withmartian/TONEBANK",
        ]

    def test_the_authors_names_are_tried_in_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def some(name: str) -> list[dict[str, Any]]:
            if name.startswith("Narmeen07"):
                raise hub.HubError("no data set", "look again")
            return [{"id": 1, "text": "How?"}, {"id": 2, "text": "Why?"}]

        monkeypatch.setattr(hub, "hub_records", some)
        assert len(open_task("debates").rows) == 20
