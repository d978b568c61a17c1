"""Where nothing steers, and why it may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ksteer_vllm.errors import listing
from ksteer_vllm.experiments.calibration.choose import TOLERANCE
from ksteer_vllm.experiments.calibration.record import CalibratedCell, Calibration

__all__ = ["where_nothing_steers", "why_nothing_steers"]


def why_nothing_steers(calibration: Calibration, cell: CalibratedCell) -> str | None:
    """Why no strength of the cell does better than none; None if one does, or if it was not looked at."""
    within = [point for point in cell.points if point.within_budget]
    if not within:
        return "no strength tried leaves enough replies coherent"
    best, plain = cell.at(cell.best), calibration.unsteered.get(cell.size)
    if best is None or plain is None or best.gain is None or best.gain.beats_unsteered:
        return None
    scores = [plain.score, *(point.score for point in within)]
    if max(scores) - min(scores) <= TOLERANCE:
        judge = calibration.judge or "the evaluation probe"
        return (
            f"flat: the judge ({judge}) gives {min(scores):.2f} to {max(scores):.2f} at every coherent "
            f"strength, and {plain.score:.2f} to unsteered replies; it may not see these labels, or the edit "
            "does not reach the text"
        )
    return (
        f"{best.score:.2f} at best, unsteered {plain.score:.2f}: the difference, {best.gain}, is not surely "
        "above 0; more prompts (--prompts) may tell"
    )


def where_nothing_steers(calibration: Calibration, invisible: Sequence[str] = ()) -> Iterator[str]:
    """A sentence for each variant and size that does no better than unsteered, at the chosen layer; and for
    each variant that steers, one that names the single labels which it does not.

    invisible: Labels that the replies the probes were fitted to do not show.
    """
    for cell in calibration.cells:
        if cell.layer != calibration.layer(cell.variant):
            continue
        size = f"{cell.size} label{'s' * (cell.size > 1)}"
        if why := why_nothing_steers(calibration, cell):
            yield f"nothing steers here: {cell.variant}, {size}: {why}"
        elif lost := [name for name, gain in cell.by_label.items() if not gain.beats_unsteered]:
            figures = listing((f"{name} {cell.by_label[name]}" for name in lost), 12)
            yield f"nothing steers here: {cell.variant}, single labels: {figures} over unsteered"
    if invisible:
        yield f"the replies that the probes were fitted to do not show {listing(invisible)}"
