"""The write-up of a calibration: strengths by variant and size, and the curves they were chosen from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.coherence import RULE
from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.experiments.calibration.choose import TOLERANCE
from ksteer_vllm.experiments.calibration.record import CalibratedCell, Calibration
from ksteer_vllm.experiments.calibration.verdict import where_nothing_steers, why_nothing_steers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration_frame", "curves", "spelled", "write_up"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#777777"
_STYLES = ("-", "--", ":", "-.")
_COLUMNS = 4
UNSTEERED = "unsteered"


def calibration_frame(calibration: Calibration, *, chosen: bool = False) -> pd.DataFrame:
    """One row per cell: its strengths and what was seen at them. chosen: only at the chosen layers."""
    import pandas as pd

    rows: list[dict[str, Any]] = [
        {
            "variant": UNSTEERED,
            "labels": size,
            _metric(calibration): point.score,
            "coherent": point.coherent,
            "note": "",
        }
        for size, point in sorted(calibration.unsteered.items())
    ]
    for cell in calibration.cells:
        if chosen and cell.layer != calibration.layer(cell.variant):
            continue
        best, largest = cell.at(cell.best), cell.at(cell.largest_coherent)
        rows.append(
            {
                "variant": cell.variant,
                "labels": cell.size,
                "layer": cell.layer,
                "best alpha": cell.best,
                _metric(calibration): best.score if best else None,
                "over unsteered": str(best.gain) if best and best.gain else "",
                "coherent": best.coherent if best else None,
                "largest coherent alpha": cell.largest_coherent,
                f"{_metric(calibration)} there": largest.score if largest else None,
                "note": _note(calibration, cell),
            }
        )
    frame = pd.DataFrame(rows, columns=_columns(calibration)).sort_values("labels", kind="stable")
    empty = [name for name in ("layer", "over unsteered", "note") if not _says_something(frame[name])]
    return frame.drop(columns=empty).reset_index(drop=True)


def write_up(
    writeup: WriteUp,
    calibration: Calibration,
    written: dict[str, Any] | None = None,
    *,
    notes: Sequence[str] = (),
    invisible: Sequence[str] = (),
    **source: Any,
) -> Path:
    """Write results.md, results.json and a figure for every size.

    Args:
        writeup: An empty write-up, opened when the calibration began.
        calibration: What was found.
        written: What `write_defaults` returned; None if nothing was written.
        notes: Caveats that the reader has to know.
        invisible: Labels that the replies the probes were fitted to do not show.
        source: Further provenance, such as model and data.

    Returns:
        The path of results.md.
    """
    rule = calibration.coherence
    writeup.text(
        f"How strongly each method may steer. Budget: at least {rule.least:.3f} of the replies coherent "
        f"({rule.budget:g} of the unsteered share, {rule.unsteered:.3f}). Best: of the strengths within the "
        f"budget, the middle one of those around the highest {_metric(calibration)} that score within "
        f"{TOLERANCE} of it. Largest coherent: the largest strength tried within the budget, found by "
        "bisection on a log scale. Over unsteered: the mean difference to the unsteered replies to the same "
        "prompts, with the bootstrap interval that is left of 95 % when it is divided among the coherent "
        "strengths (Bonferroni); a strength is written into a probe only where all of it is above 0."
    )
    writeup.text(f"Here {RULE}." + (" The judge's word counts as well." if calibration.judge else ""))
    for note in notes:
        writeup.text(f"**Note:** {note}.")
    writeup.table(calibration_frame(calibration), caption="Strength by variant and number of target labels")
    lost = list(where_nothing_steers(calibration, invisible))
    if lost:
        writeup.heading("Where nothing steers")
        writeup.text("\n".join(f"- {line}" for line in lost))
    if written:
        writeup.text(
            "Written into the probes, for requests without a strength: "
            + "; ".join(f"{name}: {_written(changes)}" for name, changes in written.items())
        )
    for size in sorted({cell.size for cell in calibration.cells}):
        cells = [cell for cell in calibration.cells if cell.size == size]
        writeup.figure(
            f"strengths-{size}",
            curves(calibration, cells),
            f"{_metric(calibration)} and coherence by strength, {size} target label{'s' * (size > 1)}",
        )
    writeup.results = calibration.as_json() | {"written": written or {}, "notes": list(notes)}
    return writeup.write(**source)


def curves(calibration: Calibration, cells: Sequence[CalibratedCell]) -> Figure:
    """One panel per variant, one line style per layer; the chosen strengths as vertical lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(cell.variant for cell in cells))
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 2.4 * rows + 0.6), sharey=True, squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):
        _panel(axis, calibration, [cell for cell in cells if cell.variant == name])
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    shown = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.supylabel("share of replies", fontsize=9)
    figure.tight_layout(rect=(0, 0.4 / (2.4 * rows + 0.6), 1, 1))
    return figure


def _panel(axis: Axes, calibration: Calibration, cells: Sequence[CalibratedCell]) -> None:
    for style, cell in zip(_STYLES * len(cells), cells, strict=False):
        alphas = [point.alpha for point in cell.points]
        where = "" if cell.layer is None or len(cells) == 1 else f", layer {cell.layer}"
        axis.plot(
            alphas, [p.score for p in cell.points], style, color=_BLUE, marker="o", markersize=3,
            label=_metric(calibration) + where,
        )  # fmt: skip
        axis.plot(
            alphas, [p.coherent for p in cell.points], style, color=_ORANGE, marker="s", markersize=3,
            label="coherent" + where,
        )  # fmt: skip
        if cell.layer == calibration.layer(cell.variant):
            for alpha, colour, label in (
                (cell.best, _BLUE, "best strength"),
                (cell.largest_coherent, _ORANGE, "largest coherent"),
            ):
                if alpha is not None:
                    axis.axvline(alpha, color=colour, linewidth=1, alpha=0.5, label=label)
    axis.axhline(calibration.coherence.least, color=_GREY, linestyle=":", linewidth=1, label="budget")
    if (plain := calibration.unsteered.get(cells[0].size)) is not None:
        label = f"{_metric(calibration)}, unsteered"
        axis.axhline(plain.score, color=_BLUE, linestyle="-.", linewidth=1, alpha=0.6, label=label)
    axis.set_xscale("log")
    axis.set_ylim(-0.03, 1.03)
    axis.set_title(cells[0].variant, fontsize=9)
    axis.set_xlabel("alpha", fontsize=8)
    axis.tick_params(labelsize=7)


def _metric(calibration: Calibration) -> str:
    return "on target" if calibration.metric == "judge" else "P(weakest target)"


def _columns(calibration: Calibration) -> list[str]:
    metric = _metric(calibration)
    strengths = ["best alpha", metric, "over unsteered", "coherent"]
    return ["variant", "labels", "layer", *strengths, "largest coherent alpha", f"{metric} there", "note"]


def _note(calibration: Calibration, cell: CalibratedCell) -> str:
    if cell.largest_coherent is None:
        return "no strength tried is within the budget"
    notes = ["nothing steers here"] if why_nothing_steers(calibration, cell) else []
    return "; ".join([*notes, *(() if cell.bracketed else ("coherent up to the largest strength tried",))])


def _written(changes: dict[str, Any]) -> str:
    alphas = ", ".join(f"{method} {alpha:.4g}" for method, alpha in changes["default_alpha"].items())
    if layers := changes.get("default_layers"):
        alphas += f" at layer {layers[0]}"
    removed = [
        f"{method}'s earlier strength removed, as none within the budget beats unsteered"
        for method in changes["removed"]
    ]
    edit = changes.get("default_edit")
    whole = f"default edit {spelled(edit)}" if edit else ""
    return ", ".join(filter(None, [alphas, whole, *removed]))


def spelled(edit: Mapping[str, Any]) -> str:
    """A default edit in a sentence: `gradient, alpha 0.3, metric variance, layers 9+12`."""

    def said(value: Any) -> str:
        if isinstance(value, list):
            return "+".join(map(str, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    fields = (f"{name} {said(value)}" for name, value in edit.items() if name != "method")
    return ", ".join([str(edit["method"]), *fields])


def _says_something(column: pd.Series) -> bool:
    return bool(column.notna().any() and (column.astype(str) != "").any())
