"""What the prefix cache must know about a steered request: what is done to a token, and to which tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["block_key", "fingerprint", "steered_ranges"]

_NAMES = ("where", "probe")


def fingerprint(edit: Mapping[str, Any], digest: str, condition_digest: str = "") -> str:
    """SHA-256 of what an edit does to a steered token: the canonical edit without its where-clause and
    names, and the probes' digests. Two requests with the same fingerprint change a token in the same way;
    the windows enter the cache keys block by block (`block_key`)."""
    fields = {field: value for field, value in edit.items() if field not in _NAMES}
    if "condition" in fields:
        fields["condition"] = {k: v for k, v in fields["condition"].items() if k != "probe"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{text}\0{digest}\0{condition_digest}".encode()).hexdigest()


def steered_ranges(windows: Sequence[int], start: int, end: int) -> list[tuple[int, int]]:
    """The steered offsets inside the block [start, end), as sorted, disjoint, half-open ranges.

    `windows` is (prompt start, end, generation start, end) in absolute positions, or one of the two pairs.
    """
    pairs = sorted((windows[i], windows[i + 1]) for i in range(0, len(windows), 2))
    ranges: list[tuple[int, int]] = []
    for first, last in pairs:
        lo, hi = max(first, start) - start, min(last, end) - start
        if lo >= hi:
            continue
        if ranges and lo <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(hi, ranges[-1][1]))
        else:
            ranges.append((lo, hi))
    return ranges


def block_key(edits: Sequence[Mapping[str, Any]], start: int, end: int) -> tuple[str, str] | None:
    """The extra prefix-cache key of the block of token positions [start, end), or None.

    edits: the records of a request's edits in order, each with "fingerprint", "windows" and, if the strength
    fades, "fade" (position where it starts, length), or, if it is divided in the prompt, "divisor". A block
    without a steered token needs no key of its own: its keys and values depend on earlier blocks only, and
    the hash chain carries those. A key of the spec alone would be wrong: under where=generation the reply is
    steered in the turn that writes it and plain in the turn that reads it. Under a fade the strength depends
    on how far the block is from its start; with a divisor, on which of its tokens are prompt.
    """
    parts = []
    for edit in edits:
        ranges = steered_ranges(edit["windows"], start, end)
        if not ranges:
            continue
        text = _listed(ranges)
        if "divisor" in edit:
            prompt, generation = (steered_ranges(edit["windows"][i : i + 2], start, end) for i in (0, 2))
            text = f"{_listed(prompt)}/{edit['divisor']},{_listed(generation)}" if prompt else text
        fade = edit.get("fade")
        last_steered = start + ranges[-1][1] - 1
        if fade is not None and last_steered > fade[0]:  # at its start the strength is still whole
            text += f"@{start - fade[0]}"
        parts.append(f"{edit['fingerprint']}:{text}")
    return ("ksteer", "ksteer:" + ";".join(parts)) if parts else None


def _listed(ranges: Sequence[tuple[int, int]]) -> str:
    return ",".join(f"{lo}-{hi}" for lo, hi in ranges)
