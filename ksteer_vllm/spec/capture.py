"""How a request asks to have its residual stream recorded; shared by the callers and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["CAPTURE_KEY", "capture_window", "check_capture"]

CAPTURE_KEY = "ksteer_capture"
"""`extra_args` key: {"id": str, "start": int, "end": int}, a half-open range of absolute positions.

The caller chooses the ids, a different one for each request.
"""


def capture_window(name: str, start: int, end: int) -> dict[str, Any]:
    """The value for `CAPTURE_KEY` that records a window of positions.

    Args:
        name: The id under which the activations are recorded.
        start: The first absolute position.
        end: The position after the last.
    """
    return {"id": name, "start": start, "end": end}


def check_capture(wanted: Any) -> None:
    """Raise ValueError unless this is a value for `CAPTURE_KEY`."""
    if not (
        isinstance(wanted, Mapping)
        and set(wanted) == {"id", "start", "end"}
        and isinstance(wanted["id"], str)
        and type(wanted["start"]) is type(wanted["end"]) is int
        and 0 <= wanted["start"] < wanted["end"]
    ):
        raise ValueError("expected a text id and integer positions start and end, with 0 <= start < end")
