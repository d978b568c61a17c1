"""What the tables say, in sentences made from them: who is ahead, and beyond which interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.verifiable.choose import Tried
from benchmarks.verifiable.effects import Effects
from benchmarks.verifiable.measure import PROMPTED, UNSTEERED
from benchmarks.verifiable.paired import Estimate, PairedBootstrap, Tally
from benchmarks.verifiable.seen import Seen
from benchmarks.verifiable.tables import SEVEN_TARGETS

__all__ = ["findings"]

_OURS = "K-Steering"


def findings(
    singles: Mapping[str, Seen],
    pairs: Mapping[str, Seen],
    effects: Mapping[str, Effects],
    chosen: Mapping[str, Tried],
) -> list[str]:
    """Sentences, each of which follows from a table of the page."""
    ours = _leader(singles, chosen, mine=True)
    theirs = _leader(singles, chosen, mine=False)
    found = [
        f"On the seven, {_told(singles, ours)}; the best baseline, {_told(singles, theirs)}; prompting "
        f"{_shown(singles, PROMPTED, SEVEN_TARGETS)}; no steering "
        f"{_shown(singles, UNSTEERED, SEVEN_TARGETS)}.",
        _lead(singles, ours, theirs, SEVEN_TARGETS, "On the seven"),
        _lead(singles, ours, PROMPTED, SEVEN_TARGETS, "On the seven"),
        _lead(pairs, _leader(pairs, chosen, mine=True), _leader(pairs, chosen, mine=False), (), "On pairs"),
        _lead(pairs, _leader(pairs, chosen, mine=True), PROMPTED, (), "On pairs"),
    ]
    raw, metric = f"{_OURS}, raw, 8 steps", f"{_OURS}, variance, 8 steps"
    if {raw, metric} <= set(singles):
        found.append(_lead(singles, metric, raw, SEVEN_TARGETS, "What the metric adds, on the seven"))
    for name in (f"{PROMPTED} + {way}" for way in chosen):
        if name in singles:
            found.append(
                f"{name}: {_shown(singles, name, SEVEN_TARGETS)} on the seven, "
                f"{_shown(pairs, name, ())} on pairs."
            )
    right = PairedBootstrap(len(effects[UNSTEERED]["right"]))
    lost = right.difference(Tally.of(effects[ours]["right"]), Tally.of(effects[UNSTEERED]["right"]))
    found.append(f"Right answers under {ours}, minus unsteered: {lost}{_significant(lost)}.")
    return found


def _leader(rows: Mapping[str, Seen], chosen: Mapping[str, Tried], *, mine: bool) -> str:
    """Of our ways, or of the others: the one chosen as best on the choosing half."""
    names = [name for name in chosen if name in rows and name.startswith(_OURS) is mine]
    return max(names, key=lambda name: chosen[name].share)


def _lead(
    rows: Mapping[str, Seen], one: str, other: str, targets: Sequence[tuple[str, ...]], where: str
) -> str:
    draws = PairedBootstrap(len(rows[UNSTEERED].questions))
    lead = draws.difference(rows[one].shown(targets), rows[other].shown(targets))
    return f"{where}: {one} minus {other} is {lead}{_significant(lead)}."


def _significant(difference: Estimate) -> str:
    return "" if difference.low > 0 or difference.high < 0 else ", an interval that holds 0"


def _told(rows: Mapping[str, Seen], name: str) -> str:
    seen = rows[name]
    return (
        f"{name} {_shown(rows, name, SEVEN_TARGETS)} (over all singles {seen.broken_share:.0%} broken, "
        f"perplexity {seen.perplexity:.1f})"
    )


def _shown(rows: Mapping[str, Seen], name: str, targets: Sequence[tuple[str, ...]]) -> str:
    return str(PairedBootstrap(len(rows[UNSTEERED].questions)).share(rows[name].shown(targets)))
