"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["wait_until"]


def wait_until(holds: Callable[[], bool], what: str, limit: float = 60.0) -> None:
    """Look ten times a second; AssertionError, saying what was waited for, after so many seconds."""
    deadline = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < deadline, f"not within {limit:.0f} s: {what}"
        time.sleep(0.1)
