"""Figures of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.combinations import size_name
from ksteer_vllm.bench.palette import OKABE_ITO as COLOURS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["composition", "ranking", "slopes", "steps", "streams"]

MARKERS = "osD^vPX*<>hp"
STYLES = ("-", "--", "-.", ":")
_UNSTEERED_GREY = "#777777"


def composition(table: pd.DataFrame, measure: str = "on_target") -> Figure:
    """A heat map of targets x variants. table: rows of variant, target, size and the measure."""
    plt = _pyplot()
    cells = table.pivot_table(index="target", columns="variant", values=measure, sort=False)
    cells = cells[list(dict.fromkeys(table["variant"]))]
    figure, axes = plt.subplots(figsize=(1.0 + 0.75 * cells.shape[1], 1.6 + 0.24 * cells.shape[0]))
    image = axes.imshow(cells.to_numpy(float), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_xticks(range(cells.shape[1]), cells.columns, rotation=40, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(cells.shape[0]), cells.index, fontsize=7)
    for row, values in enumerate(cells.to_numpy(float)):
        for column, value in enumerate(values):
            if math.isfinite(value):
                shade = "black" if value > 0.55 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=shade)
    sizes = table.drop_duplicates("target")["size"].tolist()
    for row in range(1, len(sizes)):
        if sizes[row] != sizes[row - 1]:
            axes.axhline(row - 0.5, color="white", linewidth=2)
    figure.colorbar(image, ax=axes, label="share of replies on target", fraction=0.03, pad=0.02)
    return figure


def ranking(own: pd.DataFrame, matched: pd.DataFrame | None, sizes: Sequence[int]) -> Figure:
    """Per size a panel: every variant's share on target, at its own strength and at equal displacement.

    own, matched: rows of variant, size, mean, low, high.
    """
    plt = _pyplot()
    names = list(dict.fromkeys(own["variant"]))[::-1]
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(1.8 + 3.0 * len(sizes), 1.4 + 0.32 * len(names)), sharey=True, squeeze=False
    )
    sets = [("own calibrated strength", own, COLOURS[0], "o", 0.12)]
    if matched is not None and len(matched):
        sets.append(("equal displacement", matched, COLOURS[1], "s", -0.12))
    for axes, size in zip(panels[0], sizes, strict=True):
        for label, frame, colour, marker, shift in sets:
            rows = frame[frame["size"] == size]
            y = [names.index(name) + shift for name in rows["variant"]]
            bars = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
            axes.errorbar(
                rows["mean"], y, xerr=bars, fmt=marker, color=colour, label=label, markersize=5, capsize=2
            )
        axes.set_title(size_name(size), fontsize=10)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("share of replies on target")
        axes.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][-1].legend(fontsize=8, loc="best")
    figure.tight_layout()
    return figure


def steps(curve: pd.DataFrame, references: pd.DataFrame | None = None) -> Figure:
    """Share on target by number of steps, a line per size. curve: rows of steps, size, mean, low, high.

    references: rows of variant, size, mean, shown as dashed lines in the size's colour.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6, 4))
    for index, (size, rows) in enumerate(curve.groupby("size")):
        colour = COLOURS[index % len(COLOURS)]
        bars = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        axes.errorbar(
            rows["steps"], rows["mean"], yerr=bars, color=colour, marker=MARKERS[index], capsize=3,
            label=f"K-Steering, {size_name(int(size))}",
        )  # fmt: skip
        if references is not None:
            for _, row in references[references["size"] == size].iterrows():
                axes.axhline(row["mean"], color=colour, linestyle="--", alpha=0.7)
                axes.text(
                    1.01, row["mean"], row["variant"], fontsize=7, color=colour, va="center",
                    transform=axes.get_yaxis_transform(),
                )  # fmt: skip
    axes.set_xscale("log", base=2)
    counts = sorted(set(curve["steps"]))
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("gradient steps per token, at equal displacement")
    axes.set_ylabel("share of replies on target")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def slopes(curves: pd.DataFrame) -> Figure:
    """Mean propensity of the target by multiplier, a line per variant.

    curves: rows of variant, multiplier, propensity.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for index, (variant, rows) in enumerate(curves.groupby("variant", sort=False)):
        axes.plot(
            rows["multiplier"], rows["propensity"], label=variant, marker=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)], linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
        )  # fmt: skip
    axes.axvline(0, color=_UNSTEERED_GREY, linewidth=0.8)
    axes.set_xlabel("multiplier of the calibrated strength (0: unsteered)")
    axes.set_ylabel("evaluation probe's mean logit of the target")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def streams(points: pd.DataFrame, unsteered: str) -> Figure:
    """Unsteered replies, then each variant's, coloured by target, on the same two principal components."""
    plt = _pyplot()
    variants = [name for name in dict.fromkeys(points["variant"]) if name != unsteered]
    targets = [name for name in dict.fromkeys(points["target"]) if name != "-"]
    figure, (panels,) = plt.subplots(
        1,
        1 + len(variants),
        figsize=(3.2 * (1 + len(variants)), 3.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    before = points[points["variant"] == unsteered]
    for axes, variant in zip(panels, [unsteered, *variants], strict=True):
        axes.scatter(before["x"], before["y"], s=12, color=_UNSTEERED_GREY, alpha=0.5, label=unsteered)
        for index, target in enumerate(targets):
            rows = points[(points["variant"] == variant) & (points["target"] == target)]
            axes.scatter(
                rows["x"], rows["y"], s=16, color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)], label=target,
            )  # fmt: skip
        axes.set_title(variant, fontsize=9)
        axes.set_xlabel(_explained(points, 0))
    panels[0].set_ylabel(_explained(points, 1))
    panels[-1].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    return figure


def _explained(points: pd.DataFrame, axis: int) -> str:
    return f"component {axis + 1} ({points.attrs['explained'][axis]:.0%} of variance)"


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
