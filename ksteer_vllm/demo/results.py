"""What the demo found, as figures, tables and plain statements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.demo.judge import ExactReader
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.experiments.calibration.choose import TOLERANCE
from ksteer_vllm.experiments.calibration.record import Calibration

__all__ = [
    "METHOD_NAMES",
    "RULE",
    "Claim",
    "Row",
    "calibration_table",
    "check_claims",
    "results_table",
    "summarise",
]

METHOD_NAMES: dict[str | None, str] = {None: "unsteered", "gradient": "K-Steering", "add": "CAA"}

RULE = (
    "one strength per method for all six tones: of those whose replies to calibration questions stay "
    "coherent, the middle one of those around the highest share of replies that show the tone and are "
    f"coherent, within {TOLERANCE} of it"
)

MIN_TONE_RATE = 0.8
MIN_WELL_FORMED = 0.9
MAX_UNSTEERED_RATE = 0.35


@dataclass(frozen=True)
class Row:
    """Shares over the replies that were steered alike."""

    target: tuple[str, ...]
    method: str | None
    replies: int
    tone_rates: dict[str, float]
    well_formed: float
    all_targets: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Claim:
    """One thing the demo claims, and whether it holds."""

    text: str
    holds: bool


def summarise(replies: Sequence[Reply], reader: ExactReader) -> list[Row]:
    """One row per target and method, as the replies' jobs are tagged, in the order they first appear."""
    groups: dict[tuple[tuple[str, ...], str | None], list[Verdict]] = {}
    for reply, verdict in zip(replies, reader.judge(replies), strict=True):
        tags = reply.job.tags
        groups.setdefault((tuple(tags["target"]), tags["method"]), []).append(verdict)
    rows = []
    for (target, method), group in groups.items():
        count = len(group)
        rows.append(
            Row(
                target,
                method,
                count,
                {tone: sum(tone in verdict.shown for verdict in group) / count for tone in TONES},
                sum(bool(verdict.coherent) for verdict in group) / count,
                sum(verdict.shows(target) for verdict in group) / count if target else None,
            )
        )
    return rows


def check_claims(rows: Sequence[Row]) -> list[Claim]:
    """What the demo claims: single tones under K-Steering, well-formedness, unsteered rates."""
    plain = next(row for row in rows if row.method is None)
    singles = [row for row in rows if row.method == "gradient" and len(row.target) == 1]
    weakest = min(singles, key=lambda row: row.tone_rates[row.target[0]])
    tone, rate = weakest.target[0], weakest.tone_rates[weakest.target[0]]
    steered = [row for row in rows if row.method == "gradient"]
    formed = sum(row.well_formed * row.replies for row in steered) / sum(row.replies for row in steered)
    common = max(TONES, key=lambda tone: plain.tone_rates[tone])
    return [
        Claim(
            f"each single tone at least {MIN_TONE_RATE} under K-Steering: lowest {rate:.2f} ({tone})",
            rate >= MIN_TONE_RATE,
        ),
        Claim(
            f"at least {MIN_WELL_FORMED} of all K-Steering replies well formed: {formed:.2f} "
            f"(unsteered {plain.well_formed:.2f})",
            formed >= MIN_WELL_FORMED,
        ),
        Claim(
            f"every tone below {MAX_UNSTEERED_RATE} unsteered: "
            f"highest {plain.tone_rates[common]:.2f} ({common})",
            plain.tone_rates[common] < MAX_UNSTEERED_RATE,
        ),
    ]


def results_table(rows: Sequence[Row]) -> Table:
    """The table of rates; a target tone's rate is bold."""
    title = f"share of replies, {rows[0].replies} test questions per row"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("towards", max_width=22)
    table.add_column("method", no_wrap=True)
    for heading in (*TONES, "well\nformed", "all\ntargets"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = rows[0].target
    for row in rows:
        if row.target != previous:
            table.add_section()
        rates = [
            f"[bold]{rate:.2f}[/bold]" if tone in row.target else f"{rate:.2f}"
            for tone, rate in row.tone_rates.items()
        ]
        targets = "" if row.all_targets is None else f"{row.all_targets:.2f}"
        name = " + ".join(row.target) if row.target != previous else ""
        table.add_row(name, METHOD_NAMES[row.method], *rates, f"{row.well_formed:.2f}", targets)
        previous = row.target
    return table


def calibration_table(calibration: Calibration) -> Table:
    """Every strength that was tried, per method; `too much` marks those beyond the coherence budget."""
    table = Table(title="calibration: mean over the six tones", title_justify="left")
    for heading in ("method", "alpha", "coherent", "coherent, shows the tone"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for cell in calibration.cells:
        for point in cell.points:
            chosen = point.alpha == cell.best
            note = " <- chosen" if chosen else "" if point.within_budget else " too much"
            table.add_row(
                METHOD_NAMES[cell.variant],
                f"{point.alpha:.4g}",
                f"{point.coherent:.2f}",
                f"{point.score:.3f}{note}",
                style="bold" if chosen else None,
            )
        table.add_section()
    return table
