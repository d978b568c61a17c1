"""The page of results: tables, figures, what they say, and whole replies to read, good and bad."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.verifiable.behaviours import BEHAVIOURS, shows
from benchmarks.verifiable.choose import MAX_BROKEN, Tried, best
from benchmarks.verifiable.effects import Effects
from benchmarks.verifiable.figures import draw_shares, draw_tradeoff
from benchmarks.verifiable.findings import findings
from benchmarks.verifiable.measure import PAIR_QUESTIONS, SINGLE_QUESTIONS
from benchmarks.verifiable.seen import Seen
from benchmarks.verifiable.tables import by_behaviour, choices_tried, effects_table, main_table

__all__ = ["write_page"]

NAME = "verifiable"


def write_page(
    folder: Path,
    *,
    singles: Mapping[str, Seen],
    pairs: Mapping[str, Seen],
    effects: Mapping[str, Effects],
    tried: Mapping[str, Sequence[Tried]],
    about: str,
) -> Path:
    """Write FOLDER/verifiable.md and its figures.

    Args:
        singles, pairs: Rows by name.
        effects: Side effects by name.
        tried: What was tried on the choosing half, by the way's name.
        about: How it was made: model, versions, machine.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw_shares(singles, "single behaviours", folder / f"{NAME}-singles.png")
    draw_shares(pairs, "pairs: both in one reply", folder / f"{NAME}-pairs.png")
    draw_tradeoff(tried, folder / f"{NAME}-tradeoff.png")
    chosen = {name: best(found) for name, found in tried.items()}
    parts = [
        "# Steering a real model towards behaviours that code can check",
        about,
        "## What came out",
        "\n".join(f"- {sentence}" for sentence in findings(singles, pairs, effects, chosen)),
        "## Seven single behaviours",
        f"{SINGLE_QUESTIONS} questions a cell, on which nothing was chosen. Shown: the reader finds the "
        "behaviour and the reply is not broken (under four words, or under 60 % distinct trigrams). "
        "Intervals: 95 %, paired bootstrap over the questions.",
        _markdown(main_table(singles, seven=True)),
        "## All singles",
        f"![shares]({NAME}-singles.png)",
        _markdown(main_table(singles)),
        _markdown(by_behaviour(singles)),
        "## Pairs",
        f"{PAIR_QUESTIONS} questions for each pair that does not contradict itself; both must show.",
        f"![shares]({NAME}-pairs.png)",
        _markdown(main_table(pairs)),
        "## Side effects",
        _markdown(effects_table(effects)),
        "## How the settings were chosen",
        f"On other questions, by one rule for every way: most shown with at most {MAX_BROKEN:.0%} broken.",
        f"![trade-off]({NAME}-tradeoff.png)",
        _markdown(choices_tried(tried, chosen)),
        "## Replies to read",
        *_replies(singles),
    ]
    page = folder / f"{NAME}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _markdown(frame: pd.DataFrame) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell) for cell in cells) + " |"

    rows = [line(row) for row in frame.itertuples(index=False)]
    return "\n".join([line(list(frame.columns)), "|---" * len(frame.columns) + "|", *rows])


def _replies(singles: Mapping[str, Seen]) -> list[str]:
    """Two replies a behaviour of each of the first ways, drawn blindly: one that shows it and one that does
    not, where there are both."""
    drawn = random.Random(0)
    found = []
    for name, seen in singles.items():
        found.append(f"### {name}")
        for behaviour in BEHAVIOURS:
            replies = [reply for reply in seen.replies if reply.job.tags["target"] == [behaviour]]
            for shown in (True, False):
                some = [reply for reply in replies if shows((behaviour,), reply.text) is shown]
                if some:
                    reply = drawn.choice(some)
                    text = reply.text.strip().replace("\n", " ⏎ ")
                    verdict = "shown" if shown else "not shown"
                    found.append(
                        f"**{behaviour}**, {verdict} ({len(some)} of {len(replies)}). "
                        f"*{reply.job.tags['question']}*\n> {text}"
                    )
    return found
