"""How much a finished request was steered, computed from its admission record and its length alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ksteer_vllm.spec.admitted import AdmittedEdit

__all__ = ["Tally", "tally"]

_MOVES_AT_ALPHA_0 = ("ace",)


@dataclass
class Tally:
    """One probe's share. tokens: positions its edits name; gradient_steps: positions x layers x num_steps."""

    tokens: int = 0
    gradient_steps: int = 0


def tally(edits: Sequence[AdmittedEdit], num_tokens: int) -> dict[str, Tally]:
    """Probe -> how much it steered a request whose first num_tokens positions went through the model.

    A position counts once per probe, and as long as the edit's strength has not faded to 0. Whether an edit's
    condition was met, or its steps ended early, only a report can tell: here all named positions and steps
    count.
    """
    named: dict[str, list[tuple[int, int]]] = {}
    found: dict[str, Tally] = {}
    for admitted in edits:
        edit = admitted.edit
        probe = edit["probe"]
        entry = found.setdefault(probe, Tally())
        if edit.get("alpha") == 0 and edit["method"] not in _MOVES_AT_ALPHA_0:
            continue
        ranges = _ranges(admitted, num_tokens)
        named.setdefault(probe, []).extend(ranges)
        entry.gradient_steps += _covered(ranges) * len(edit["layers"]) * edit.get("num_steps", 0)
    for probe, ranges in named.items():
        found[probe].tokens = _covered(ranges)
    return found


def _ranges(admitted: AdmittedEdit, num_tokens: int) -> list[tuple[int, int]]:
    """Half-open ranges of positions that an edit names, ended where it has faded away."""
    first, last, start, end = admitted.windows
    limit = num_tokens
    if admitted.fade is not None:
        begins, length = admitted.fade
        limit = min(limit, begins + length)
    return [(first, min(last, limit)), (start, min(end, limit))]


def _covered(ranges: Sequence[tuple[int, int]]) -> int:
    """How many positions are in at least one of the ranges."""
    total = reached = 0
    for start, end in sorted(ranges):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
