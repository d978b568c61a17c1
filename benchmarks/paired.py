"""Cases that take turns on one engine: each round runs every case once in random order, and every ratio is
taken within its round. The unsteered case runs twice a round; the ratio of the two is the noise."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.harness import generate_seconds
from benchmarks.record import Table, paired_ratios, spread, summary

UNSTEERED = "unsteered"
AGAIN = "unsteered, again"


@dataclass(frozen=True)
class Load:
    """One batch: per request its extra_args or None, and how many tokens it reads and writes."""

    extra_args: Sequence[dict[str, Any] | None]
    tokens: int
    prompt_tokens: int = 8

    @property
    def batch(self) -> int:
        return len(self.extra_args)

    def seconds(self, llm: Any) -> float:
        return generate_seconds(llm, list(self.extra_args), self.tokens, self.prompt_tokens)


def measure(llm: Any, cases: Mapping[str, Load], rounds: int, console: Console, name: str) -> dict[str, Any]:
    """seconds per case and round, and the plugin's own counters. Adds the two unsteered cases."""
    some = next(iter(cases.values()))
    plain = replace(some, extra_args=[None] * some.batch)
    loads = {UNSTEERED: plain, AGAIN: plain, **cases}
    seconds: dict[str, list[float]] = {case: [] for case in loads}
    for load in loads.values():
        replace(load, tokens=min(load.tokens, 4)).seconds(llm)
    order = random.Random(name)
    before = llm.collective_rpc("ksteer_counters")[0]
    for _ in track(range(rounds), name, console=console):
        for case in order.sample(list(loads), len(loads)):
            seconds[case].append(loads[case].seconds(llm))
    after = llm.collective_rpc("ksteer_counters")[0]
    return {
        "batch": plain.batch,
        "prompt_tokens": plain.prompt_tokens,
        "tokens": plain.tokens,
        "seconds": seconds,
        "throughput_vs_unsteered": {
            case: paired_ratios(times, seconds[UNSTEERED], inverse=True) for case, times in seconds.items()
        },
        "counters": {counter: after[counter] - before[counter] for counter in after},
    }


def throughput_table(title: str, result: Mapping[str, Any]) -> Table:
    """Throughput against unsteered, and the time of the whole batch."""
    table = Table(title, ("case", "throughput vs unsteered", "time of the batch, ms"))
    for case, ratio in result["throughput_vs_unsteered"].items():
        milliseconds = summary([1e3 * value for value in result["seconds"][case]])
        table.rows.append((case, spread(ratio), spread(milliseconds, 1)))
    return table
