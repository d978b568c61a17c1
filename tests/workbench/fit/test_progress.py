"""Progress where there is no terminal: a few plain lines, and an honest estimate."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ksteer_vllm.fit import progress as module
from ksteer_vllm.fit.progress import progress_bar, spoken


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "results are alone on standard output"
    return captured.err.splitlines()


def test_a_line_for_every_tenth_with_rate_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(Console(file=io.StringIO())) as bar:
        task = bar.add_task("writing replies", total=100, completed=20, together=4)
        for _ in range(80):
            clock.now += 0.5
            bar.advance(task)
    assert lines_of(capsys) == [
        "writing replies: 24 of 100, 2.0 per second, about 38 s left",
        "writing replies: 34 of 100, 2.0 per second, about 33 s left",
        "writing replies: 44 of 100, 2.0 per second, about 28 s left",
        "writing replies: 54 of 100, 2.0 per second, about 23 s left",
        "writing replies: 64 of 100, 2.0 per second, about 18 s left",
        "writing replies: 74 of 100, 2.0 per second, about 13 s left",
        "writing replies: 84 of 100, 2.0 per second, about 8 s left",
        "writing replies: 94 of 100, 2.0 per second, about 3 s left",
        "writing replies: 100 of 100, in 40 s",
    ]


def test_nothing_is_estimated_before_a_first_batch(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        task = bar.add_task("writing replies", total=1000, together=32)
        clock.now += 20
        bar.advance(task)
        clock.now += 1
        bar.advance(task, 31)
        clock.now += 1
        bar.advance(task, 1)
    assert lines_of(capsys) == [
        "writing replies: 1 of 1000",
        "writing replies: 33 of 1000, 1.5 per second, about 11 min left",
    ]


def test_what_is_quick_says_one_line_and_slow_work_says_now_and_then(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar() as bar:
        quick = bar.add_task("recording [activations]", total=3)
        for _ in range(3):
            clock.now += 0.1
            bar.advance(quick)
        slow = bar.add_task("fitting", total=1000)
        for done in range(1, 5):
            clock.now += 10
            bar.update(slow, completed=done, description=f"fitting (loss {1 / done:.2f})")
    assert lines_of(capsys) == [
        "recording [activations]: 3 of 3, in 0 s",
        "fitting (loss 1.00): 1 of 1000, 10 s each, about 2 h 46 min left",
        "fitting (loss 0.33): 3 of 1000, 10 s each, about 2 h 46 min left",
    ]


def test_a_terminal_gets_a_bar() -> None:
    file = io.StringIO()
    with progress_bar(Console(file=file, force_terminal=True, width=100)) as bar:
        bar.advance(bar.add_task("fitting", total=2))
        bar.refresh()
        bar.stop()
    assert "━" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.4, "3 s"), (89, "89 s"), (150, "2 min"), (3600, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_a_time_as_it_is_said(seconds: float, said: str) -> None:
    assert spoken(seconds) == said
