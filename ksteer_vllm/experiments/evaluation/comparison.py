"""Which method does better: paired differences with bootstrap intervals, and sentences that sum them up.

Two variants are compared on the same targets and prompts. Replies to one prompt share a sampling seed and are
not independent, so prompts are what is resampled; targets are all there are and stay. An interval that
includes 0 is a tie. Intervals are not corrected for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ksteer_vllm.bench.intervals import LEVEL, interval_of_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LEVEL", "Difference", "best_of", "compare", "difference_table", "intervals", "sentences"]


@dataclass(frozen=True)
class Difference:
    """Mean of `variant` minus mean of `against` for one size of combinations, with its interval."""

    variant: str
    against: str
    size: int
    mean: float
    low: float
    high: float
    pairs: int

    @property
    def outcome(self) -> Literal["wins", "loses", "ties"]:
        if self.low > 0:
            return "wins"
        return "loses" if self.high < 0 else "ties"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome}


def compare(
    seen: pd.DataFrame, variant: str, against: str, size: int, *, measure: str = "on_target", seed: int = 0
) -> Difference:
    """The paired difference of two variants.

    Args:
        seen: Rows of variant, size, target, prompt and the measure, see `metrics.towards`.
        variant, against: Names of the two variants.
        size: Number of labels per combination.
        measure: The column to compare.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If the two have no target and prompt in common.
    """
    rows = seen[seen["size"] == size]
    cells = [
        rows[rows["variant"] == name].groupby(["prompt", "target"])[measure].mean()
        for name in (variant, against)
    ]
    pairs = (cells[0] - cells[1]).dropna()
    if pairs.empty:
        raise ValueError(f"{variant} and {against} have no reply of size {size} in common")
    low, high = _interval(pairs, seed)
    return Difference(variant, against, size, float(pairs.mean()), low, high, len(pairs))


def intervals(seen: pd.DataFrame, *, measure: str = "on_target", seed: int = 0) -> pd.DataFrame:
    """Rows of variant, size, mean, low, high: every variant's mean and its interval, resampling prompts."""
    import pandas as pd

    rows = []
    for (variant, size), group in seen.groupby(["variant", "size"], sort=False):
        values = group.set_index("prompt")[measure].dropna()
        if len(values):
            low, high = _interval(values, seed)
            rows.append(
                {"variant": variant, "size": size, "mean": float(values.mean()), "low": low, "high": high}
            )
    return pd.DataFrame(rows, columns=["variant", "size", "mean", "low", "high"])


def best_of(seen: pd.DataFrame, size: int, *, measure: str = "on_target") -> list[tuple[str, float]]:
    """Variants of a size by their mean, highest first."""
    means = seen[seen["size"] == size].groupby("variant", sort=False)[measure].mean().dropna()
    return [(str(name), float(value)) for name, value in means.sort_values(ascending=False).items()]


def sentences(
    seen: pd.DataFrame,
    size: int,
    champions: Sequence[str],
    others: Sequence[str],
    *,
    measure: str = "on_target",
) -> tuple[list[str], list[Difference]]:
    """Who wins, for one size: the highest variant and those that tie with it, then each champion against
    each of the others. Returns the sentences, and the champions' differences."""
    ranking = best_of(seen, size, measure=measure)
    if not ranking:
        return [], []
    best, value = ranking[0]
    against = [compare(seen, best, name, size, measure=measure) for name, _ in ranking[1:]]
    ties = [_plain(found.against) for found in against if found.outcome != "wins"]
    lines = [
        f"Highest: {_plain(best)}, {value:.2f}; "
        + (f"ties with {', '.join(ties)}." if ties else "ahead of every other variant.")
    ]
    found: list[Difference] = []
    for champion in champions:
        differences = [
            compare(seen, champion, name, size, measure=measure) for name in others if name != champion
        ]
        found += differences
        parts = []
        for outcome, words in (("wins", "beats"), ("ties", "ties with"), ("loses", "loses to")):
            named = [_plain(d.against) for d in differences if d.outcome == outcome]
            if named:
                parts.append(f"{words} {', '.join(named)}")
        if parts:
            lines.append(f"{_plain(champion)}, {dict(ranking)[champion]:.2f}: {'; '.join(parts)}.")
    return lines, found


def _plain(name: str) -> str:
    """A name that can stand in a list: `K-Steering (8 steps, softmin)`."""
    head, _, tail = name.partition(", ")
    return f"{head} ({tail})" if tail else head


def _interval(values: pd.Series, seed: int) -> tuple[float, float]:
    """Bootstrap percentiles of the mean; values: indexed by prompt, which is what is resampled."""
    return interval_of_mean(values.to_numpy(), values.index.get_level_values("prompt"), seed=seed)


def difference_table(differences: Sequence[Difference]) -> pd.DataFrame:
    """A row per variant compared against, a column per champion: difference, interval, outcome."""
    import pandas as pd

    cells: dict[str, dict[str, str]] = {}
    for d in differences:
        text = f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f}) {d.outcome}"
        cells.setdefault(d.against, {})[d.variant] = text
    return pd.DataFrame([{"against": against, **row} for against, row in cells.items()])
