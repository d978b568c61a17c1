"""Reading /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

LIMIT = 60.0
"""Seconds to wait for the workers' counters, which a server fetches every 5 seconds."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(url: str) -> Samples:
    """(name, sorted labels) -> value of every sample."""
    text = httpx.get(f"{url}/metrics", follow_redirects=True, timeout=60).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(url: str) -> set[str]:
    return {name for name, _ in scrape(url)}


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all samples of a metric that have these labels; 0 if there are none."""
    return sum(
        number for (n, own), number in samples.items() if n == name and labels.items() <= dict(own).items()
    )


def wait_for(url: str, reached: Callable[[Samples], bool]) -> Samples:
    """The samples, once they are as wanted."""
    deadline = time.monotonic() + LIMIT
    while not reached(samples := scrape(url)):
        assert time.monotonic() < deadline, "the metrics did not come to what was expected"
        time.sleep(0.2)
    return samples
