"""Replies the engine gives to rows without one: under their instruction, seeded, and resumed."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from tests.support.engines import prepare_environment

prepare_environment()

from ksteer_vllm.bench import replies  # noqa: E402
from ksteer_vllm.bench.journal import Journal  # noqa: E402
from ksteer_vllm.bench.replies import generate_missing_replies  # noqa: E402
from ksteer_vllm.data.rows import LabelledRow, Message, write_rows  # noqa: E402
from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR  # noqa: E402
from ksteer_vllm.demo.reader import read  # noqa: E402
from ksteer_vllm.errors import DataError, UsageError  # noqa: E402
from ksteer_vllm.fit.pipeline import complete_rows  # noqa: E402

QUESTION = "How do I clean my kettle?"


def _row(tone: str, reply: str | None = None) -> LabelledRow:
    chat = (
        Message(role="system", content=f"Please be {tone}."),
        Message(role="user", content=QUESTION),
    )
    return LabelledRow(prompt=chat, reply=reply, labels=(tone,))


ROWS = [_row("casual"), _row("cautious", "Given already."), _row("cautious"), _row("casual")]


def _generate(rows: Sequence[LabelledRow], **options: Any) -> list[LabelledRow]:
    return generate_missing_replies(str(MODEL_DIR), rows, engine_options=ENGINE_OPTIONS, **options)


class _Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    engine = replies._start_engine(str(MODEL_DIR), ENGINE_OPTIONS)
    yield engine
    engine.llm_engine.engine_core.shutdown()


@pytest.fixture
def stops(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shared engine is taken instead of a new one; the list grows when it is to stop."""
    found: list[int] = []
    monkeypatch.setattr(replies, "_start_engine", lambda *_: engine)
    monkeypatch.setattr(engine.llm_engine.engine_core, "shutdown", lambda: found.append(1))
    return found


def test_replies_follow_the_instruction_and_a_stopped_run_goes_on(
    stops: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "replies.jsonl"
    whole = _generate(ROWS)
    assert [row.model_copy(update={"reply": None}) for row in whole] == [_row(row.labels[0]) for row in ROWS]
    assert whole[1].reply == "Given already."
    for index in (0, 2, 3):
        reading = read(QUESTION, whole[index].spoken)
        assert reading.tones == set(whole[index].labels), whole[index].reply
        assert reading.well_formed
    assert whole[0].reply != whole[3].reply  # the same prompt, another seed

    class Stopping(Journal):
        def add(self, key: str, value: Any) -> None:
            super().add(key, value)
            raise _Stopped

    with pytest.raises(_Stopped), Stopping(path, {}) as journal:
        _generate(ROWS, journal=journal)
    assert len(stops) == 2
    asked: list[int] = []
    run = replies._run

    def counted(engine: Any, jobs: Any, *rest: Any) -> Any:
        asked.append(len(jobs))
        return run(engine, jobs, *rest)

    monkeypatch.setattr(replies, "_run", counted)
    with Journal(path, {}) as journal:
        assert len(journal) == 1
        assert _generate(ROWS, journal=journal) == whole
        assert asked[0] == 2
        monkeypatch.setattr(replies, "_start_engine", lambda *_: pytest.fail("an engine was started"))
        assert _generate(ROWS, journal=journal) == whole
    assert _generate([ROWS[1]]) == [ROWS[1]]


def test_so_many_at_once_and_the_same_row_says_the_same(
    engine: Any, stops: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's reply is that of its number in the data, whichever rows are asked: commands can share it."""
    rows = [_row("casual").numbered(number) for number in range(1, 8)]
    add, most = engine.llm_engine.add_request, [0]

    def counted(*arguments: Any) -> Any:
        most[0] = max(most[0], 1 + engine.llm_engine.get_num_unfinished_requests())
        return add(*arguments)

    monkeypatch.setattr(engine.llm_engine, "add_request", counted)
    with Journal(tmp_path / "replies.jsonl", {}) as journal:
        whole = _generate(rows, at_once=3, journal=journal)
        assert most == [3]
        assert _generate(rows[4:], at_once=3) == whole[4:]
        monkeypatch.setattr(replies, "_start_engine", lambda *_: pytest.fail("an engine was started"))
        assert _generate(rows[4:], journal=journal) == whole[4:]


KILLED = """
import os, signal, sys
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.replies import generate_missing_replies
from ksteer_vllm.data.rows import read_rows
from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
add = Journal.add
def add_and_die(self, key, value):
    add(self, key, value)
    if len(self) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_and_die
rows, journal = read_rows(sys.argv[1]), Journal(sys.argv[2], {})
generate_missing_replies(str(MODEL_DIR), rows, engine_options=ENGINE_OPTIONS, at_once=2, journal=journal)
"""
"""Killed by itself once so many replies are kept: from outside it might have ended by then."""


@pytest.mark.slow
def test_a_killed_process_goes_on_with_what_it_had(stops: list[int], tmp_path: Path) -> None:
    rows, path = [_row("casual").numbered(n) for n in range(1, 7)], tmp_path / "replies.jsonl"
    data = write_rows(tmp_path / "data.jsonl", rows)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(data), str(path)], check=False, timeout=600)
    assert killed.returncode == -signal.SIGKILL
    kept = path.read_bytes()
    assert len(kept.splitlines()) == 1 + 3
    with Journal(path, {}) as journal:
        told = io.StringIO()
        found = _generate(rows, journal=journal, progress=Progress(console=Console(file=told, width=200)))
    assert (
        "3 replies will be written by the model (temperature 1, at most 128 tokens each)" in told.getvalue()
    )
    assert "3 are kept from before" in told.getvalue()
    assert path.read_bytes().startswith(kept)
    assert len(path.read_bytes().splitlines()) == 1 + 6
    assert found == _generate(rows)


def test_a_prompt_without_room_is_refused(stops: list[int]) -> None:
    with pytest.raises(UsageError, match="the engine holds 256"):
        _generate(ROWS, max_tokens=250)
    assert stops == [1]


def test_empty_replies_are_asked_again_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        class llm_engine:
            class engine_core:
                shutdown = staticmethod(lambda: None)

    silent = {1: 2, 2: 9}  # row -> how often it says nothing
    times: dict[int, int] = {}

    def run(_: Any, jobs: Any, *__: Any) -> Any:
        for key, job in jobs.items():
            row = min(job.seed % replies.SEEDS_APART, len(rows) - 1)  # the last may be numbered otherwise
            times[row] = times.get(row, 0) + 1
            yield key, {"text": "  " if times[row] <= silent.get(row, 0) else f"said {row}"}

    rows = [_row("casual")] * 2
    monkeypatch.setattr(replies, "_start_engine", lambda *_: Engine)
    monkeypatch.setattr(replies, "_run", run)
    assert [row.reply for row in _generate(rows)] == ["said 0", "said 1"]
    assert times == {0: 1, 1: 3}
    times.clear()
    rows = [_row("casual")] * 3
    with pytest.raises(DataError, match="row 3: the model's reply is empty, 3 times over"):
        _generate(rows)
    times.clear()
    with pytest.raises(DataError, match="row 8: the model's reply is empty"):
        _generate([*rows[:2], rows[2].numbered(8)])


def test_a_prompt_that_ends_with_a_reply_gets_no_second_one(tmp_path: Path) -> None:
    turns = (Message(role="user", content="How?"), Message(role="assistant", content="So."))
    rows = [_row("casual" if index % 2 else "cautious", "So.") for index in range(40)]
    rows.append(LabelledRow(prompt=turns, labels=("casual",)).numbered(41))
    with pytest.raises(DataError, match="row 41: no reply, and the prompt ends with the assistant's message"):
        complete_rows(str(MODEL_DIR), rows, tmp_path / "replies.jsonl", labels=["casual"])
    assert not (tmp_path / "replies.jsonl").exists()
