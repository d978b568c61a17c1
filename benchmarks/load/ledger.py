"""What became of every request: sent = answered + refused + cancelled, and what was wrong with the rest."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from testbed.compare import TOLERANCE, largest_difference
from testbed.replies import Reply

OUTCOMES = ("answered", "refused", "cancelled")
MAX_EXAMPLES = 20


@dataclass
class Ledger:
    """Counts by kind of request. failures: what went wrong, the first MAX_EXAMPLES in words."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)
    engine_answered: int = 0
    """Choices that came back whole: each is one request to vLLM's engine."""
    engine_cancelled: int = 0
    """Choices of requests the client gave up: the engine may have seen, and even finished, them."""
    steered_answered: int = 0
    steered_cancelled: int = 0
    refused_by_us: int = 0
    """Refusals of the completion routes for what the request asks of steering."""

    def sent(self, kind: str) -> None:
        self.counts[kind]["sent"] += 1

    def ended(self, kind: str, outcome: str, seconds: float) -> None:
        """outcome: one of OUTCOMES."""
        self.counts[kind][outcome] += 1
        if outcome == "answered":
            self.seconds[kind].append(seconds)

    def failed(self, kind: str, why: str) -> None:
        """Anything that is not a valid outcome: a wrong status, a broken answer, a lost connection."""
        self.counts[kind]["failed"] += 1
        self._note(f"{kind}: {why}")

    def compared(self, kind: str, reply: Reply, expected: tuple[Reply, ...]) -> None:
        """The reply must be one of `expected`, token by token."""
        self.counts[kind]["compared"] += 1
        differences = [_difference(reply, other) for other in expected]
        if not any(same for same, _ in differences):
            self.counts[kind]["mismatched"] += 1
            tokens = [output.token_ids for output in reply.outputs]
            self._note(f"{kind}: got {tokens}, expected {[o.token_ids for e in expected for o in e.outputs]}")
        elif all(tie for same, tie in differences if same):
            self.counts[kind]["near_ties"] += 1

    def _note(self, text: str) -> None:
        if len(self.failures) < MAX_EXAMPLES:
            self.failures.append(text[:600])

    def total(self, what: str) -> int:
        return sum(counts[what] for counts in self.counts.values())

    def problems(self) -> list[str]:
        """Why the ledger does not balance; empty if it does."""
        found = []
        for kind, counts in sorted(self.counts.items()):
            ended = sum(counts[outcome] for outcome in OUTCOMES)
            if counts["sent"] != ended:
                found.append(f"{kind}: {counts['sent']} sent, {ended} answered, refused or cancelled")
            if counts["failed"] or counts["mismatched"]:
                found.append(f"{kind}: {counts['failed']} failed, {counts['mismatched']} mismatched")
        return found

    def as_json(self) -> dict[str, Any]:
        names = ("sent", *OUTCOMES, "failed", "compared", "near_ties", "mismatched")
        kinds = {
            kind: {name: counts[name] for name in names}
            | {"median_seconds": statistics.median(self.seconds[kind]) if self.seconds[kind] else None}
            for kind, counts in sorted(self.counts.items())
        }
        return {
            "total": {name: self.total(name) for name in names},
            "kinds": kinds,
            "engine_answered": self.engine_answered,
            "engine_cancelled": self.engine_cancelled,
            "steered_answered": self.steered_answered,
            "steered_cancelled": self.steered_cancelled,
            "refused_by_us": self.refused_by_us,
            "failures": self.failures,
        }


def _difference(reply: Reply, expected: Reply) -> tuple[bool, bool]:
    """(the same, but for a token where the two best are nearer than TOLERANCE; whether there was one)."""
    if len(reply.outputs) != len(expected.outputs):
        return False, False
    tie = False
    for index in range(len(reply.outputs)):
        difference, near = largest_difference(expected, reply, index)
        if difference >= TOLERANCE:
            return False, False
        tie |= near
    return True, tie
