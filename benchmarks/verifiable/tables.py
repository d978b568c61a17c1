"""The tables of the page, as data frames: every figure with its interval, every way in one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.verifiable.behaviours import BEHAVIOURS, SEVEN
from benchmarks.verifiable.choose import Tried
from benchmarks.verifiable.effects import Effects
from benchmarks.verifiable.measure import PROMPTED, UNSTEERED
from benchmarks.verifiable.paired import PairedBootstrap, Tally
from benchmarks.verifiable.seen import Seen

__all__ = ["by_behaviour", "choices_tried", "effects_table", "main_table"]

SEVEN_TARGETS = tuple((name,) for name in SEVEN)


def main_table(rows: Mapping[str, Seen], *, seven: bool = False) -> pd.DataFrame:
    """One line a way: shown, its lead over unsteered and over prompting, broken, perplexity, length.

    Args:
        rows: By name; `unsteered` and `prompted` among them.
        seven: Count only the seven behaviours that the goals are stated for.
    """
    targets = SEVEN_TARGETS if seven else ()
    draws = PairedBootstrap(len(rows[UNSTEERED].questions))
    plain, prompted = rows[UNSTEERED].shown(targets), rows[PROMPTED].shown(targets)
    lines = []
    for name, seen in rows.items():
        shown = seen.shown(targets)
        lines.append(
            {
                "way": name,
                "shown": str(draws.share(shown)),
                "minus unsteered": "" if name == UNSTEERED else str(draws.difference(shown, plain)),
                "minus prompted": "" if name == PROMPTED else str(draws.difference(shown, prompted)),
                "broken": f"{seen.broken_share:.2f}",
                "perplexity": f"{seen.perplexity:.1f}",
                "distinct pairs": f"{seen.distinct:.2f}",
                "tokens": f"{seen.tokens:.0f}",
            }
        )
    return pd.DataFrame(lines)


def by_behaviour(rows: Mapping[str, Seen]) -> pd.DataFrame:
    """Share that shows the behaviour, one line a way, one column a behaviour."""
    return pd.DataFrame(
        [
            {"way": name, **{b: f"{_share(seen.shown(((b,),))):.2f}" for b in BEHAVIOURS}}
            for name, seen in rows.items()
        ]
    )


def choices_tried(tried: Mapping[str, Sequence[Tried]], chosen: Mapping[str, Tried]) -> pd.DataFrame:
    """Every setting that was tried on the choosing half; the chosen ones are marked."""
    return pd.DataFrame(
        [
            {
                "way": name,
                "layers": ", ".join(map(str, found.setting.layers)),
                "strength": found.setting.strength,
                "shown": round(found.share, 3),
                "broken": round(found.broken, 3),
                "nll": round(found.nll, 2),
                "chosen": "yes" if found == chosen[name] else "",
            }
            for name, all_tried in tried.items()
            for found in all_tried
        ]
    )


def effects_table(effects: Mapping[str, Effects]) -> pd.DataFrame:
    """Correct answers and divergence on neutral text, with their intervals, one line a way."""
    items = PairedBootstrap(len(effects[UNSTEERED]["right"]))
    texts = PairedBootstrap(len(effects[UNSTEERED]["kl"]))
    base = Tally.of(effects[UNSTEERED]["right"])
    return pd.DataFrame(
        [
            {
                "way": name,
                "right answers": str(items.share(Tally.of(found["right"]))),
                "minus unsteered": ""
                if name == UNSTEERED
                else str(items.difference(Tally.of(found["right"]), base)),
                "KL, nats a token": str(texts.share(Tally.of(found["kl"]))),
            }
            for name, found in effects.items()
        ]
    )


def _share(tally: Tally) -> float:
    return float(tally.hits.sum() / tally.asked.sum())
