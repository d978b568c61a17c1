"""The load test's result as tables, markdown and a plot of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.record import Table

__all__ = ["chart", "draw", "markdown", "tables_of"]

COLUMNS = ("sent", "answered", "refused", "cancelled", "failed", "compared", "near_ties", "mismatched")


def tables_of(result: Mapping[str, Any]) -> list[Table]:
    ledger = result["ledger"]
    by_kind = Table("Requests by kind", ("kind", *(name.replace("_", " ") for name in COLUMNS)))
    groups: dict[str, dict[str, int]] = {}
    for kind, counts in ledger["kinds"].items():
        name = "bad requests, all kinds" if kind.startswith("bad: ") else kind
        group = groups.setdefault(name, dict.fromkeys(COLUMNS, 0))
        for column in COLUMNS:
            group[column] += counts[column]
    groups["all"] = ledger["total"]
    for name, group in groups.items():
        by_kind.rows.append((name, *(str(group[column]) for column in COLUMNS)))
    by_server = Table("The server's own account", ("what", "server", "ledger"))
    for name, found in {**result["accounts"], **result["final"]}.items():
        if isinstance(found, dict):
            least, most = found["ledger"]
            shown = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            server = "not told" if found["server"] is None else f"{found['server']:g}"
            by_server.rows.append((name, server, shown))
    return [by_kind, by_server]


def markdown(result: Mapping[str, Any], tables: list[Table], plot: str | None) -> str:
    memory = result["memory"]
    slope, late = memory["slope_mib_per_minute"], memory["last_quarter_mib_per_minute"]
    lines = [
        "# Load test",
        "",
        f"`{result['command']}`, {result['device']}: {result['seconds']:.0f} s at {result['concurrency']} "
        f"requests at once, {result['ledger']['total']['sent'] / result['seconds']:.1f} requests a second.",
        "",
        "It balances: sent = answered + refused + cancelled, every compared answer is the one expected."
        if not result["problems"]
        else "It does NOT balance:\n\n" + "\n".join(f"- {problem}" for problem in result["problems"]),
        "",
        *(f"{table.markdown()}\n" for table in tables),
        f"Resident memory of the server's processes: {memory['first']:.0f} MiB before the load, "
        f"{memory['last']:.0f} MiB at its end"
        + ("" if slope is None else f"; after {memory['warm_up_seconds']:.0f} s {slope:+.2f} MiB a minute")
        + ("" if late is None else f", in the last quarter {late:+.2f}")
        + ".",
    ]
    if plot is not None:
        lines += ["", f"![resident memory over time]({plot})"]
    return "\n".join(lines) + "\n"


def draw(samples: list[tuple[float, float, float]], warm_up: float, path: Path) -> None:
    """Resident memory over time: the process tree, and its largest process."""
    with chart(path, "minutes of load", "resident, MiB") as axis:
        times = [at / 60 for at, _, _ in samples]
        axis.plot(times, [size for _, size, _ in samples], label="all processes", color="#4c72b0")
        axis.plot(times, [size for _, _, size in samples], label="the largest", color="#b0b0b0")
        axis.axvline(warm_up / 60, color="black", linewidth=0.8, linestyle=":", label="warm-up ends")


@contextmanager
def chart(path: Path, x: str, y: str) -> Iterator[Any]:
    """An axis to draw labelled lines on, from 0 up; written to path at the end of the block."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3))
    yield axis
    axis.set_ylim(bottom=0)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
