"""How the verifiable benchmark's processes divide the work, and how a run takes over what they leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.verifiable.measure import PROMPTED, UNSTEERED, Chosen, _rows
from benchmarks.verifiable.share import WHOLE, Share
from benchmarks.verifiable.stages import JOURNAL, Stages
from benchmarks.verifiable.ways import WAYS, Setting
from ksteer_vllm.bench.journal import Journal

IDENTITY = {"model": "m", "temperature": 0.7}


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_way_is_in_one_share(count: int) -> None:
    shares = [Share(number, count).of(WAYS) for number in range(count)]
    assert sorted(name for share in shares for name in share) == sorted(WAYS)
    assert Share.parse(f"1/{count}") == Share(1, count)
    assert WHOLE.of(WAYS) == WAYS


def test_a_table_has_a_row_for_whatever_was_chosen() -> None:
    setting = Setting((12,), 0.4)
    chosen = Chosen(alone=dict.fromkeys(WAYS, setting), prompted={"CAA": setting})
    rows = _rows(chosen, (("french",), ("french", "exclamations")), ("Why?", "Where?"))
    assert list(rows) == [UNSTEERED, PROMPTED, f"{PROMPTED} + CAA", *WAYS]
    assert [len(rows[name]) for name in (UNSTEERED, PROMPTED, "CAA")] == [2, 4, 4]


def test_what_processes_left_is_taken_over_once(tmp_path: Path) -> None:
    stages = Stages("m", tmp_path, Console(quiet=True), float("inf"))
    with Journal(tmp_path / JOURNAL, IDENTITY) as journal:
        journal.add("a", 1)
    for number in (0, 1):
        with Journal(tmp_path / Share(number, 2).file, IDENTITY) as theirs:
            theirs.add("a", "not this one")
            theirs.add(f"from {number}", number)
    stages._take_over()
    with Journal(tmp_path / JOURNAL, IDENTITY) as journal:
        assert {key: journal[key] for key in journal} == {"a": 1, "from 0": 0, "from 1": 1}
    assert [file.name for file in tmp_path.iterdir()] == [JOURNAL]
