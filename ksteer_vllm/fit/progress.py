"""Progress of long work: a bar on a terminal, plain lines elsewhere. Both tell the time that is left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar", "spoken"]

_AT_LEAST: Final = 2.0
"""Seconds between two lines of one task, unless it is done."""
_AT_MOST: Final = 15.0
"""Seconds after which something that was done is told, however little."""
_LINES: Final = 10
"""The work is told in about so many lines."""


def progress_bar(console: Console | None = None) -> Progress:
    """Where commands show how far they are, with counts, rate and the time left.

    A task may say `together=N`: so many of its items end at about the same time, and nothing is concluded
    from fewer.

    Args:
        console: The console of the results. Where that is no terminal, progress goes to standard error, so
            that a file of results holds results.
    """
    if console is None or not console.is_terminal:
        console = Console(stderr=True)
    if not console.is_terminal:
        return _Lines(console=console, disable=True)
    return _Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def spoken(seconds: float) -> str:
    """A time as it is said: `40 s`, `3 min`, `1 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Bar(Progress):
    """A bar that appears with the first task, so that a fit that is refused prints one line only."""

    def __enter__(self) -> Self:
        return self

    def add_task(self, *arguments: Any, **options: Any) -> TaskID:
        self.start()
        return super().add_task(*arguments, **options)

    def stop(self) -> None:
        if self.live.is_started:
            super().stop()


@dataclass
class _Told:
    """What the lines of a task have said. began: (when, how many were done); when, done: of the last line."""

    began: tuple[float, float]
    when: float
    done: float
    together: int
    estimated: bool = False
    finished: bool = False


class _Lines(Progress):
    """A line for every tenth of the work, and where that takes long, now and then."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._told: dict[TaskID, _Told] = {}

    def add_task(self, description: str, *arguments: Any, **options: Any) -> TaskID:
        task = super().add_task(description, *arguments, **options)
        now, done = time.monotonic(), self._tasks[task].completed
        self._told[task] = _Told((now, done), now, done, self._tasks[task].fields.get("together", 1))
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task, told, now = self._tasks[task_id], self._told[task_id], time.monotonic()
        if not task.total or told.finished:
            return
        told.finished = task.completed >= task.total
        seconds, items = now - told.began[0], task.completed - told.began[1]
        since, known = now - told.when, items >= told.together
        a_tenth = (task.completed - told.done) * _LINES >= task.total
        worth = a_tenth or since >= _AT_MOST or (known and not told.estimated)
        if not told.finished and not (since >= _AT_LEAST and worth):
            return
        line = f"{task.description}: {task.completed:.0f} of {task.total:.0f}"
        if told.finished:
            line += f", in {spoken(seconds)}"
        elif known and seconds > 0:
            rate = items / seconds
            pace = f"{rate:.1f} per second" if rate >= 1 else f"{spoken(1 / rate)} each"
            line += f", {pace}, about {spoken((task.total - task.completed) / rate)} left"
            told.estimated = True
        told.when, told.done = now, task.completed
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
