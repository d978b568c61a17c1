"""What the prefix cache must know of a steered request: one fingerprint, and which tokens it touches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["block_key", "fingerprint", "steered_ranges"]


def fingerprint(canonical_spec: Mapping[str, Any], probe_digest: str) -> str:
    """SHA-256 of what is done to a steered token: the canonical spec without its where-clause, and the
    probe's digest. Two requests with the same fingerprint change a token in the same way; the windows
    enter the cache keys block by block (`block_key`)."""
    edit = {field: value for field, value in canonical_spec.items() if field not in ("where", "probe")}
    text = json.dumps(edit, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{text}\0{probe_digest}".encode()).hexdigest()


def steered_ranges(windows: Sequence[int], start: int, end: int) -> list[tuple[int, int]]:
    """The steered offsets inside the block [start, end), as sorted, disjoint, half-open ranges.

    `windows` is (prompt start, end, generation start, end) in absolute positions.
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


def block_key(digest: str, windows: Sequence[int], start: int, end: int) -> tuple[str, str] | None:
    """The extra prefix-cache key of the block of token positions [start, end), or None.

    A block without a steered token needs no key of its own: its keys and values depend on earlier
    blocks only, and the hash chain carries those. A key of the spec alone would be wrong: under
    where=generation the reply is steered in the turn that writes it and plain in the turn that reads it.
    """
    ranges = steered_ranges(windows, start, end)
    if not ranges:
        return None
    return ("ksteer", f"ksteer:{digest}:" + ",".join(f"{lo}-{hi}" for lo, hi in ranges))
