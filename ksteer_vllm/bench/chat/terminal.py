"""Lines from a terminal or a file, and Ctrl-C that stops a reply instead of the program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["PROMPT", "say", "stoppable", "typed_lines"]

PROMPT = "> "


def say(text: str) -> None:
    """Print as it comes, without a line break."""
    print(text, end="", flush=True)


def typed_lines() -> Iterator[str]:
    """The lines of standard input until it ends (Ctrl-D).

    On a terminal they can be edited, and Ctrl-C drops the one being typed. Otherwise each is printed, so that
    the output reads as a conversation.
    """
    if not sys.stdin.isatty():
        for line in sys.stdin:
            say(f"{PROMPT}{line.rstrip()}\n")
            yield line
        return
    with suppress(ImportError):
        import readline  # noqa: F401  input() then has history and editing
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            say("\n")
        except EOFError:
            say("\n")
            return


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C only makes the returned function true.

    An engine that is interrupted in the middle of a step cannot go on, so whoever runs it looks between
    steps. A second Ctrl-C raises KeyboardInterrupt.
    """
    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
