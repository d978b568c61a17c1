"""The figures of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

from benchmarks.verifiable.choose import MAX_BROKEN, Tried
from benchmarks.verifiable.measure import UNSTEERED
from benchmarks.verifiable.paired import PairedBootstrap
from benchmarks.verifiable.seen import Seen
from ksteer_vllm.bench.palette import OKABE_ITO

mpl.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["draw_shares", "draw_tradeoff"]


def draw_shares(rows: Mapping[str, Seen], title: str, file: Path) -> None:
    """Share of replies that show the behaviour, with 95 % intervals, and the share that is broken."""
    draws = PairedBootstrap(len(rows[UNSTEERED].questions))
    names = list(rows)[::-1]
    found = [draws.share(rows[name].shown()) for name in names]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1.2), layout="constrained")
    places = range(len(names))
    axes.barh(places, [estimate.value for estimate in found], color=OKABE_ITO[0], height=0.62, label="shown")
    axes.errorbar(
        [estimate.value for estimate in found],
        places,
        xerr=[[e.value - e.low for e in found], [e.high - e.value for e in found]],
        fmt="none",
        ecolor="#333333",
        elinewidth=1,
    )
    axes.plot([rows[n].broken_share for n in names], places, "x", color=OKABE_ITO[1], label="broken")
    axes.set_yticks(places, names)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of replies")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_tradeoff(tried: Mapping[str, Sequence[Tried]], file: Path) -> None:
    """What each strength showed against what it broke, on the choosing half."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, (name, found) in enumerate(tried.items()):
        best_layers = max(found, key=lambda one: one.share).setting.layers
        line = sorted((f for f in found if f.setting.layers == best_layers), key=lambda f: f.setting.strength)
        axes.plot(
            [f.broken for f in line],
            [f.share for f in line],
            marker="o",
            markersize=4,
            color=OKABE_ITO[number % len(OKABE_ITO)],
            label=name,
        )
    axes.axvline(MAX_BROKEN, color="#999999", linestyle=":", linewidth=1)
    axes.set_xlabel("broken")
    axes.set_ylabel("shown")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)
