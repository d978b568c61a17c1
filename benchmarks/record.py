"""Statistics, tables and result files. Needs only the standard library and torch."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ksteer_vllm.versions import VLLM_BUILDS, installed_versions

RESULTS = Path(__file__).parent / "results"
LOAD_AT_START = os.getloadavg()[0]
SETTINGS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LD_PRELOAD")
"""Environment variables that change what is measured."""


@dataclass
class Table:
    """A table that is printed, kept in the result file, and set in the page of its machine."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

        rule = "|" + "---|" * len(self.columns)
        return "\n".join([f"**{self.title}**", "", line(self.columns), rule, *map(line, self.rows)])

    def rich(self) -> Any:
        from rich.table import Table as RichTable

        table = RichTable(title=self.title)
        for column in self.columns:
            table.add_column(column)
        for row in self.rows:
            table.add_row(*row)
        return table


def wide_console() -> Any:
    """A console whose tables are not squeezed into 80 columns when the output is a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=150)


def summary(values: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else [*values] * 4
    return {"p20": fifths[0], "p50": statistics.median(values), "p80": fifths[3]}


def percentile(values: Sequence[float], percent: int) -> float:
    """Linear between the two nearest values."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def paired_ratios(
    times: Sequence[float], base: Sequence[float], *, inverse: bool = False
) -> dict[str, float]:
    """p20/p50/p80 over rounds of time / base time of the same round; inverse: throughput ratios."""
    return summary([b / t if inverse else t / b for t, b in zip(times, base, strict=True)])


def spread(quantiles: Mapping[str, float], digits: int = 3) -> str:
    """`1.025 (1.013 to 1.079)`: the median and p20 to p80."""
    p20, p50, p80 = (f"{quantiles[name]:.{digits}f}" for name in ("p20", "p50", "p80"))
    return f"{p50} ({p20} to {p80})"


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(10_000))
    return medians[249], medians[9749]


def _command() -> str:
    """As it was typed, with what it was given of SETTINGS."""
    settings = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return " ".join([*settings, f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """The command, the machine, how busy it was, and the versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return {
        "command": _command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": device,
        "threads": torch.get_num_threads(),
        "load_at_start": LOAD_AT_START,
        "python": platform.python_version(),
        "versions": installed_versions(("ksteer-vllm", *VLLM_BUILDS, "torch", "triton")),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def _commit() -> str:
    """The short commit, `+` where tracked files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except OSError:
        return ""


def slug(text: str) -> str:
    """`AMD EPYC, 2 cores` -> `amd-epyc-2-cores`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_result(name: str, result: Mapping[str, Any], tables: Sequence[Table] = ()) -> Path:
    """results/NAME.json: where and how it was measured, the figures, and the tables that show them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    shown = {"tables": [asdict(table) for table in tables]} if tables else {}
    path.write_text(json.dumps({**provenance(), **result, **shown}, indent=1) + "\n")
    return path
