"""Events an operator may want to search for: one log line each, a fixed prefix followed by a JSON object.

    ksteer-event {"event": "probe_loaded", "name": "tones", "digest": "sha256:…"}

They go to the logger "vllm.ksteer". No line holds prompt or reply text; strings and lists are truncated, and
events that a client can cause at will are rate limited.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["EVENTS", "PREFIX", "emit"]

PREFIX = "ksteer-event "

EVENTS = ("started", "probe_loaded", "probe_retired", "preset_changed", "refused", "dropped_edits")

MAX_TEXT, MAX_ITEMS, MAX_DEPTH = 200, 32, 3

_LINES_PER_MINUTE = {"refused": 20, "dropped_edits": 1}
"""Rate-limited events; the first line after a pause says how many were left out, as `suppressed`."""
_WARNINGS = ("dropped_edits",)

logger = logging.getLogger("vllm.ksteer")


@dataclass
class _Rate:
    """A token bucket that refills within a minute."""

    lines: float
    since: float
    suppressed: int = 0


_rates: dict[str, _Rate] = {}
_lock = threading.Lock()


def emit(event: str, /, **fields: Any) -> None:
    """Log an event. Never raises; thread safe.

    Args:
        event: One of `EVENTS`.
        **fields: What happened, in plain JSON types.
    """
    suppressed = _take(event)
    if suppressed is None:
        return
    line = {"event": event, **{name: _bounded(value, 0) for name, value in fields.items()}}
    if suppressed:
        line["suppressed"] = suppressed
    level = logging.WARNING if event in _WARNINGS else logging.INFO
    logger.log(level, "%s%s", PREFIX, json.dumps(line))


def _take(event: str) -> int | None:
    """How many lines were left out before this one, or None if this one must be left out too."""
    limit = _LINES_PER_MINUTE.get(event)
    if limit is None:
        return 0
    now = time.monotonic()
    with _lock:
        rate = _rates.setdefault(event, _Rate(limit, now))
        rate.lines = min(limit, rate.lines + (now - rate.since) * limit / 60)
        rate.since = now
        if rate.lines < 1:
            rate.suppressed += 1
            return None
        rate.lines -= 1
        suppressed, rate.suppressed = rate.suppressed, 0
        return suppressed


def _bounded(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            items = list(value.items())[:MAX_ITEMS]
            return {str(name)[:MAX_TEXT]: _bounded(item, depth + 1) for name, item in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [_bounded(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
