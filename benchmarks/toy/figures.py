"""The figure and the tables of `benchmarks.steering_clear`, from the rows of `run_cell`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.record import Table
from benchmarks.toy.experiment import ONE_BY_ONE, TOGETHER, UNSTEERED

__all__ = ["STYLES", "draw", "tables"]

STYLES: dict[str, tuple[str, str, str]] = {
    "K-Steering, 1 step": ("#56B4E9", "o", ":"),
    "K-Steering, 8 steps": ("#0072B2", "s", "--"),
    "K-Steering, 8 steps, softmin": ("#0072B2", "D", "-"),
    "K-Steering, 32 steps, softmin": ("#000000", "*", "-"),
    "linear probe": ("#999999", "v", "--"),
    "CAA": ("#E69F00", "^", "-"),
    "ACE": ("#D55E00", "x", "--"),
    "LoReFT": ("#CC79A7", "P", "-"),
    "LoReST": ("#009E73", "h", "-"),
    "random direction": ("#999999", ".", ":"),
}
"""Colour (Okabe and Ito's), marker and line of every method."""


def draw(rows: pd.DataFrame, picture: Path) -> Path:
    """Above: success by examples, for three numbers of targets; below: by targets, at the most examples."""
    sizes, most = sorted(rows["size"].unique()), rows["examples"].max()
    shown = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharey=True)
    alone = rows[rows["setting"] == ONE_BY_ONE]
    for axis, size in zip(axes[0], shown, strict=True):
        _lines(axis, alone[alone["size"] == size], "examples", "all_targeted")
        axis.set_xscale("log", base=2)
        counts = sorted(rows["examples"].unique())
        axis.set_xticks(counts, map(str, counts))
        axis.set_xlabel("examples: contrast pairs per value")
        axis.set_title(f"{size} attribute{'' if size == 1 else 's'} at once")
    axes[0][0].set_ylabel("all targeted attributes\nread their target")
    for axis, (measure, title) in zip(axes[1], _MEASURES.items(), strict=True):
        _lines(axis, alone[alone["examples"] == most], "size", measure)
        axis.set_xticks(sizes)
        axis.set_xlabel("attributes steered at once")
        axis.set_title(f"{title}, {most} examples")
    axes[1][0].set_ylabel("share of test inputs")
    handles, names = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4, fontsize=9, frameon=False)
    runs = rows["seed"].nunique()
    figure.suptitle(
        f"Steering Clear's toy environment; mean and its standard error over {runs} environments", fontsize=11
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


_MEASURES = {
    "all_targeted": "all targets reached",
    "others": "other attributes kept",
    "everything": "all eight as wanted",
}


def _lines(axis: Any, rows: pd.DataFrame, over: str, measure: str) -> None:
    for method, (colour, marker, line) in STYLES.items():
        found = rows[rows["method"] == method].groupby(over)[measure].agg(["mean", "sem"])
        found = found[found["mean"].notna()].fillna(0)
        axis.plot(found.index, found["mean"], color=colour, marker=marker, linestyle=line, label=method)
        low, high = found["mean"] - found["sem"], found["mean"] + found["sem"]
        axis.vlines(found.index, low, high, color=colour, alpha=0.6, linewidth=1)
    axis.set_ylim(-0.03, 1.03)
    axis.grid(alpha=0.25)


def tables(rows: pd.DataFrame) -> list[Table]:
    """By examples and by targets, fitted value by value; then what is fitted to a combination."""
    most, sizes = rows["examples"].max(), sorted(rows["size"].unique())
    alone = rows[rows["setting"] == ONE_BY_ONE]
    joint = rows[rows["setting"] == TOGETHER]
    made = [
        _table(f"{size} at once, by examples", alone[alone["size"] == size], "examples")
        for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1])
    ]
    made.append(_table(f"{most} examples, by attributes at once", alone[alone["examples"] == most], "size"))
    made += [
        _table(f"{size} at once, fitted to the combination, by examples", part, "examples")
        for size, part in joint.groupby("size")
    ]
    return made


def _table(title: str, rows: pd.DataFrame, over: str) -> Table:
    """Cells: all targets reached / other attributes kept / all eight as wanted, means over environments."""
    means = rows.groupby(["method", over])[list(_MEASURES)].mean()
    columns = sorted(rows[over].unique())
    order = [name for name in (*STYLES, UNSTEERED) if name in set(rows["method"])]
    body: list[Sequence[str]] = []
    for method in order:
        cells = [means.loc[(method, column)] for column in columns]
        body.append([method, *(" / ".join(_share(cell[name]) for name in _MEASURES) for cell in cells)])
    return Table(f"{title}: {' / '.join(_MEASURES.values())}", ["method", *map(str, columns)], body)


def _share(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"
