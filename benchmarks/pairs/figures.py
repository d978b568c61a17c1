"""What the environments' figures show: what steering gains against what else it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

__all__ = ["draw", "heat_map"]

_STYLES: dict[str, tuple[str, str]] = {
    "K-Steering, 1 step": ("#56B4E9", "v"),
    "K-Steering, 8 steps": ("#0072B2", "o"),
    "K-Steering, 8 steps, softmin": ("#001F5B", "s"),
    "linear probe": ("#999999", "P"),
    "CAA": ("#E69F00", "^"),
    "ACE": ("#D55E00", "D"),
    "LoReFT": ("#009E73", "X"),
    "LoReST": ("#CC79A7", "p"),
    "random direction": ("#000000", "x"),
}
"""Okabe and Ito's colours, which the colour-blind tell apart, and a mark each."""

_ROWS = (
    ("target", "target features\n(0 unsteered, 1 context)", (-0.1, 1.4)),
    ("similarity", "similarity of the word\nto a target word", None),
)


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Calibration pairs at every strength: both gains by off-target change; a ring at the chosen strength."""
    points, chosen = pd.DataFrame(result["strengths"]), pd.DataFrame(result["chosen"])
    references = pd.DataFrame(result["references"])
    sizes = sorted(points["size"].unique())
    figure, axes = plt.subplots(
        len(_ROWS),
        len(sizes),
        figsize=(4.2 * len(sizes) + 2.2, 6.6),
        sharex="col",
        sharey="row",
        squeeze=False,
    )
    for column, size in enumerate(sizes):
        for row, (measure, label, limits) in enumerate(_ROWS):
            axis = axes[row][column]
            for variant, own in points[points["size"] == size].groupby("variant", sort=False):
                colour, mark = _STYLES.get(variant, ("#666666", "."))
                axis.plot(
                    own["off_target"], own[measure], color=colour, marker=mark, markersize=4, linewidth=1.2,
                    label=variant,
                )  # fmt: skip
                taken = chosen[(chosen["size"] == size) & (chosen["variant"] == variant)]
                axis.plot(
                    taken["off_target"], taken[measure], linestyle="", marker="o", markersize=10,
                    markerfacecolor="none", color=colour,
                )  # fmt: skip
            _mark(axis, references[references["size"] == size], measure)
            axis.set_xscale("symlog", linthresh=0.5)
            axis.set_xlim(0, 20)
            axis.set_xticks([0, 0.25, 0.5, 1, 2, 5, 10], ["0", "", "0.5", "1", "2", "5", "10"])
            axis.grid(alpha=0.25)
            if limits:
                axis.set_ylim(*limits)
            if column == 0:
                axis.set_ylabel(label)
        axes[0][column].set_title("one behaviour" if size == 1 else f"{size} behaviours at once")
        axes[-1][column].set_xlabel("off-target change of features")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    figure.suptitle(
        f"Prompt pairs, {result['environment']['name']}: every strength; ring: the calibrated one"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def _mark(axis: Any, references: pd.DataFrame, measure: str) -> None:
    """The context as a star, its off-target change (the budget) as a line; the unsteered level as another."""
    for name, own in references.set_index("variant").iterrows():
        if name == "context":
            axis.axvline(own["off_target"], color="black", linewidth=0.7, linestyle=":")
            axis.plot(own["off_target"], own[measure], "k*", markersize=13, label="context instead")
        else:
            axis.axhline(own[measure], color="black", linewidth=0.7, linestyle="--", label="unsteered")


def heat_map(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Share of target features per set of behaviours and variant, on the test pairs."""
    frame = pd.DataFrame(rows)
    table = frame.pivot(index="targets", columns="variant", values="target")
    table = table.loc[frame["targets"].unique(), frame["variant"].unique()]
    figure, axis = plt.subplots(figsize=(1.0 * len(table.columns) + 3, 0.24 * len(table) + 2.2))
    image = axis.imshow(table.to_numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(
        range(len(table.columns)), [str(c).replace(", ", ",\n") for c in table.columns], fontsize=8
    )
    axis.tick_params(axis="x", rotation=45)
    axis.set_yticks(range(len(table)), table.index, fontsize=7)
    for y, own in enumerate(table.to_numpy()):
        for x, value in enumerate(own):
            colour = "black" if value > 0.6 else "white"
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, label="target features (1: as the context does)")
    figure.tight_layout()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path
