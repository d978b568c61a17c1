"""What the rows of `benchmarks.steering_clear` show, in sentences with figures."""

from __future__ import annotations

import pandas as pd

from benchmarks.toy.experiment import ONE_BY_ONE

__all__ = ["findings"]


def findings(rows: pd.DataFrame) -> list[str]:
    """The findings, computed whichever way they come out; shares are means over environments."""
    few, most = rows["examples"].min(), rows["examples"].max()
    largest = rows["size"].max()
    several = max((size for size in rows["size"].unique() if size < largest), default=largest)
    return [
        *(_by_examples(rows, method) for method in ("LoReFT", "LoReST", "CAA", "ACE")),
        *(_keeping(rows, size, most) for size in dict.fromkeys((several, largest))),
        _few(rows, few),
    ]


def _by_examples(rows: pd.DataFrame, method: str) -> str:
    """All eight attributes as wanted, averaged over the numbers of targets, by examples."""
    part = rows[(rows["method"] == method) & (rows["setting"] == ONE_BY_ONE)]
    means = part.groupby("examples")["everything"].mean()
    by_count = ", ".join(f"{count}: {share:.2f}" for count, share in means.items())
    return (
        f"{method}, all eight as wanted, mean over 1 to {rows['size'].max()} targets, by examples: {by_count}"
    )


def _keeping(rows: pd.DataFrame, size: int, examples: int) -> str:
    """All targets at once, and the other attributes kept, at the most examples."""
    part = rows[(rows["size"] == size) & (rows["examples"] == examples) & (rows["setting"] == ONE_BY_ONE)]
    means = part.groupby("method")[["all_targeted", "others"]].mean()
    order = means.sort_values("all_targeted", ascending=False)
    cells = (
        f"{method} {row['all_targeted']:.2f}" + ("" if pd.isna(row["others"]) else f" ({row['others']:.2f})")
        for method, row in order.iterrows()
    )
    targets = f"{size} target{'' if size == 1 else 's'}"
    return f"{targets}, {examples} examples, all reached (others kept): {', '.join(cells)}"


def _few(rows: pd.DataFrame, examples: int) -> str:
    """The best methods at the fewest examples."""
    part = rows[(rows["examples"] == examples) & (rows["setting"] == ONE_BY_ONE)]
    means = part.groupby("method")["everything"].mean().sort_values(ascending=False)
    cells = ", ".join(f"{method} {share:.2f}" for method, share in list(means.items())[:5])
    return f"{examples} examples, all eight as wanted, mean over targets, best first: {cells}"
