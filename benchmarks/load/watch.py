"""What the server says of itself, and how much memory its processes hold."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["MemoryLog", "metrics_of", "total"]

MEBIBYTE = 2**20


@dataclass
class MemoryLog:
    """Resident bytes of a process tree over time: (seconds, total, largest process)."""

    process: psutil.Process
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    def sample(self, start: float) -> None:
        sizes = []
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes.append(process.memory_info().rss / MEBIBYTE)
        self.samples.append((time.monotonic() - start, sum(sizes), max(sizes, default=0.0)))

    async def keep_sampling(self, start: float, every: float) -> None:
        while True:
            self.sample(start)
            await asyncio.sleep(every)

    def slope(self, after: float) -> float | None:
        """MiB per minute, least squares over the samples after so many seconds; None for fewer than three."""
        return slope([(at, size) for at, size, _ in self.samples if at >= after])


def slope(points: Iterable[tuple[float, float]]) -> float | None:
    """Slope per minute of the least-squares line through (seconds, size)."""
    points = list(points)
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return 60 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else None


def metrics_of(url: str) -> Counter[tuple[str, tuple[tuple[str, str], ...]]]:
    """(sample name, labels) -> value of every counter and gauge of /metrics."""
    text = httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text
    return Counter(
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.type in ("counter", "gauge")
        }
    )


def total(
    metrics: Counter[tuple[str, tuple[tuple[str, str], ...]]], name: str, **labels: str
) -> float | None:
    """The sum over all samples of a name with these labels; None if there is none of that name."""
    found = [
        value
        for (sample, own), value in metrics.items()
        if sample == name and labels.items() <= dict(own).items()
    ]
    return sum(found) if found else None
