"""The stages in their order: replies, fits, choosing, reporting, side effects, page. Each resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.verifiable.choose import Tried, best, try_all
from benchmarks.verifiable.effects import side_effects
from benchmarks.verifiable.fits import fit_all
from benchmarks.verifiable.measure import Chosen, measure_pairs, measure_singles
from benchmarks.verifiable.page import write_page
from benchmarks.verifiable.replies import ENGINE, MAX_TOKENS, write_replies
from benchmarks.verifiable.ways import WAYS, Way
from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.data.rows import LabelledRow, read_rows
from ksteer_vllm.fit.pipeline import progress_bar

__all__ = ["Stages"]

TEMPERATURE = 0.7
TOP_P = 0.95
LAST_LAYER = 29
"""Captured for the divergences: no way edits it."""


class TimeUp(Exception):
    """The piece's minutes are over."""


class _TimedJournal(Journal):
    """A journal that ends the run when its time is up; what it was given is kept."""

    def __init__(self, path: Path, identity: Mapping[str, Any], deadline: float) -> None:
        super().__init__(path, identity)
        self._deadline = deadline

    def add(self, key: str, value: Any) -> None:
        super().add(key, value)
        if time.monotonic() > self._deadline:
            raise TimeUp


class Stages:
    """One run.

    Args:
        model: The model folder.
        out: Keeps what is done.
        console: Where progress is shown.
        deadline: `time.monotonic()` at which to stop.
    """

    def __init__(self, model: str, out: Path, console: Console, deadline: float) -> None:
        self.model, self.out, self.console, self.deadline = model, out, console, deadline

    def run(self, results: Path, about: str) -> Path | None:
        """Go on until everything is done or the time is up. Returns the page, or None."""
        try:
            rows = self._rows()
            folders = fit_all(self.model, rows, self.out, self.console)
            if time.monotonic() > self.deadline:
                return None
            with (
                Bench(
                    self.model,
                    folders,
                    engine_options=ENGINE,
                    temperature=TEMPERATURE,
                    top_p=TOP_P,
                    max_tokens=MAX_TOKENS,
                    steering={"capture": {"layers": [LAST_LAYER]}, "max_probes": len(folders)},
                ) as bench,
                _TimedJournal(self.out / "steered.jsonl", bench.identity, self.deadline) as journal,
                progress_bar(self.console) as progress,
            ):
                tried = try_all(bench, journal, progress)
                combined = try_all(bench, journal, progress, ways=_leaders(tried), prompted=True)
                chosen = Chosen(
                    {name: best(found).setting for name, found in tried.items()},
                    {name: best(found).setting for name, found in combined.items()},
                )
                singles = measure_singles(bench, journal, chosen, progress)
                pairs = measure_pairs(bench, journal, chosen, progress)
                effects = side_effects(bench, journal, chosen.alone)
        except TimeUp:
            return None
        return write_page(results, singles=singles, pairs=pairs, effects=effects, tried=tried, about=about)

    def _rows(self) -> list[LabelledRow]:
        file = self.out / "rows.jsonl"
        if file.exists():
            return read_rows(file)
        with progress_bar(self.console) as progress:
            return write_replies(self.model, self.out, progress)


def _leaders(tried: Mapping[str, list[Tried]]) -> dict[str, Way]:
    """The best of ours and the best baseline, which are also tried on top of prompting."""
    names = sorted(tried, key=lambda name: -best(tried[name]).share)
    ours = next(name for name in names if name.startswith("K-Steering"))
    theirs = next(name for name in names if not name.startswith("K-Steering"))
    return {name: WAYS[name] for name in (ours, theirs)}


def describe(provenance: Mapping[str, Any]) -> str:
    """How a page was made, in one line."""
    return f"`{json.dumps(provenance)}`"
