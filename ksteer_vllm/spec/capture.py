"""What a request says to have its residual stream recorded, shared by those who ask and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["CAPTURE_KEY", "capture_window", "check_capture"]

CAPTURE_KEY = "ksteer_capture"
"""`extra_args` key: {"id": str, "start": int, "end": int}, a half-open range of absolute positions.

Ids are the caller's; one id for one request.
"""


def capture_window(name: str, start: int, end: int) -> dict[str, Any]:
    """The value for `CAPTURE_KEY` that records positions start to end (exclusive) under the name."""
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
        raise ValueError("expected an id (text) and positions start and end with 0 <= start < end")
