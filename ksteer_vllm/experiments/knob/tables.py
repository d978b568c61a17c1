"""What making a knob prints: which replies counted, how well the probe reads, and what steering did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from ksteer_vllm.experiments.knob.figures import BehaviourFigures
from ksteer_vllm.experiments.knob.selection import PLAIN, Selection
from ksteer_vllm.experiments.knob.strength import StrengthPoint
from ksteer_vllm.experiments.knob.tryout import ROWS

__all__ = ["auroc_table", "figure_table", "selection_table", "strength_table"]


def selection_table(selection: Selection) -> Table:
    """Behaviour -> what became of its replies."""
    table = _titled(
        "replies", "behaviour", "read by", "written", "broken", "not shown", "contradicting", "kept"
    )
    for name, counts in selection.counts.items():
        check = selection.checks.get(name)
        by = "" if name == PLAIN else "left out" if check is None else check.by
        figures = (counts.written, counts.broken, counts.not_shown, counts.contradicting, counts.kept)
        table.add_row(name, by, *map(str, figures))
    return table


def auroc_table(aurocs: Mapping[str, Mapping[int, float]]) -> Table:
    """Label -> AUROC on held-out replies, by layer."""
    layers = list(next(iter(aurocs.values())))
    table = _titled("held-out AUROC of the probe", "label", *(f"layer {layer}" for layer in layers))
    for label, found in aurocs.items():
        table.add_row(label, *(f"{found[layer]:.2f}" for layer in layers))
    return table


def strength_table(
    points: Sequence[StrengthPoint], names: Sequence[str], chosen: Mapping[str, float]
) -> Table:
    """Strength -> share of replies that show each behaviour and can be read; a star marks what was chosen."""
    table = _titled("strengths (share shown)", "strength", *names, "mean", "broken", "hard to read")
    for point in points:
        marks = {name: " *" if chosen.get(name) == point.strength else "" for name in names}
        shares = [f"{point.shown[name]:.2f}{marks[name]}" for name in names]
        rest = (f"{point.mean:.2f}", f"{point.mean_broken:.2f}", f"{point.unreadable:.2f}")
        table.add_row(f"{point.strength:g}", *shares, *rest)
    return table


def figure_table(figures: Mapping[str, BehaviourFigures]) -> Table:
    """Behaviour -> counts with intervals, unsteered, prompted and steered."""
    present = [row for row in ROWS if all(row in found.shares for found in figures.values())]
    table = _titled("replies that show it, on questions used for nothing else", "behaviour", *present, "gain")
    for name, found in figures.items():
        table.add_row(name, *(str(found.shares[row]) for row in present), str(found.gain))
    return table


def _titled(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="left" if column == "read by" else "right")
    return table
