"""Halves and prompts: no conversation is in two parts, and every label is in both halves often enough."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.halves import Partition
from ksteer_vllm.data.rows import LabelledRow, Message
from ksteer_vllm.data.split import MIN_ROWS, prompt_key
from ksteer_vllm.errors import DataError

STYLES = {"warm": "Be warm.", "dry": "Be dry."}


def _rows(questions: int, styles: Sequence[str] = tuple(STYLES)) -> list[LabelledRow]:
    return [
        LabelledRow(
            prompt=(
                Message(role="system", content=STYLES[style]),
                Message(role="user", content=f"Question {number}?"),
            ),
            reply=f"{style} {number}",
            labels=(style,),
        )
        for number in range(questions)
        for style in styles
    ]


def _keys(partition: Partition) -> list[set[str]]:
    parts = [{prompt_key(row.prompt) for row in half} for half in (partition.steering, partition.evaluation)]
    return parts + [{prompt_key(prompt) for prompt in found} for found in partition.prompts.values()]


def test_no_conversation_is_in_two_parts() -> None:
    rows = _rows(60)
    found = TaskDataset.of("data", rows).partition(0)
    parts = _keys(found)
    assert [len(part) for part in parts] == [24, 24, 6, 6]
    assert len(set.union(*parts)) == 60
    assert sorted(found.steering + found.evaluation, key=rows.index) == [
        row for row in rows if prompt_key(row.prompt) in parts[0] | parts[1]
    ]
    assert all(message.role == "user" for p in found.prompts["evaluation"] for message in p)  # type: ignore[union-attr]


def test_the_seed_decides() -> None:
    dataset = TaskDataset.of("data", _rows(60))
    assert dataset.partition(1) == dataset.partition(1) != dataset.partition(2)


def test_brought_prompts_are_kept_and_their_conversations_left_out() -> None:
    prompts = {
        "calibration": [(Message(role="user", content="Question 3?"),)],
        "evaluation": [(Message(role="system", content="Be brief."), Message(role="user", content="New?"))],
    }
    found = TaskDataset.of("data", _rows(60), prompts=prompts).partition(0)
    assert found.prompts["calibration"] == tuple(prompts["calibration"])
    assert found.prompts["evaluation"] == ((Message(role="user", content="New?"),),)
    assert len(found.steering) + len(found.evaluation) == 2 * 59
    parts = _keys(found)
    assert len(set.union(*parts)) == sum(map(len, parts)) == 61
    with pytest.raises(DataError, match="give some for each of calibration, evaluation"):
        TaskDataset.of("data", _rows(60), prompts={"calibration": prompts["calibration"]})


def test_few_prompts_of_many_rows_are_split_by_row_only_beside_brought_prompts() -> None:
    rows = [
        LabelledRow(prompt=f"p{i % 5}", reply=str(i), labels=("warm",) if i // 5 % 2 else ())
        for i in range(120)
    ]
    brought = TaskDataset.of("data", rows, prompts={"calibration": ["x"], "evaluation": ["y"]}).partition(0)
    assert len(brought.steering) == len(brought.evaluation) == 60
    parts = _keys(TaskDataset.of("data", rows).partition(0))
    assert [len(part) for part in parts[2:]] == [1, 1]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 5


def test_a_label_with_three_rows_is_named_with_them() -> None:
    rows = [*_rows(30), *(LabelledRow(prompt=f"odd {n}", reply="x", labels=("rare",)) for n in range(3))]
    problem = (
        r"3 rows with 'rare' \(row 61, 62, 63\); at least 20 are needed.*add rows, or leave the label out"
    )
    with pytest.raises(DataError, match=problem):
        TaskDataset.of("data", rows).partition(0)
    assert TaskDataset.of("data", rows, labels=["warm", "dry"]).partition(0).steering


def test_labels_that_cannot_be_in_both_halves_are_named() -> None:
    rows = [
        *_rows(30, ["dry"]),
        *(LabelledRow(prompt="one", reply=str(n), labels=("warm",)) for n in range(25)),
    ]
    with pytest.raises(
        DataError, match=f"{MIN_ROWS} rows with and {MIN_ROWS} without 'warm'; add rows of other"
    ):
        TaskDataset.of("data", rows, labels=["warm"]).partition(0)


def test_the_rows_of_a_half_keep_their_numbers() -> None:
    rows = _rows(60)
    found = TaskDataset.of("data", rows).partition(0)
    for half in (found.steering, found.evaluation):
        assert all(row.number == rows.index(row) + 1 for row in half)
