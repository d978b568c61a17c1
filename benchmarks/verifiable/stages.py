"""The stages in their order: replies, fits, choosing, reporting, side effects, page. Each resumes.

One engine leaves a core idle half of the time: a step of a small model is short, and what vLLM does between
two steps takes one core. So several engines write replies at once, each its share of the ways; the run then
finds them all in its journal.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.verifiable.choose import Tried, best, try_all
from benchmarks.verifiable.effects import side_effects
from benchmarks.verifiable.fits import fit_all
from benchmarks.verifiable.measure import Chosen, measure_pairs, measure_singles
from benchmarks.verifiable.page import write_page
from benchmarks.verifiable.replies import ENGINE, MAX_TOKENS, write_replies
from benchmarks.verifiable.share import Share
from benchmarks.verifiable.ways import WAYS, Way
from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.machine import cores
from ksteer_vllm.data.rows import LabelledRow, read_rows
from ksteer_vllm.fit.pipeline import progress_bar

__all__ = ["Stages"]

TEMPERATURE = 0.7
TOP_P = 0.95
LAST_LAYER = 29
"""Captured for the divergences: no way edits it."""
JOURNAL = "steered.jsonl"
PHASES = ("choose", "combine", "measure")
"""What processes share out; each needs the one before to be whole."""


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

    def run(self, results: Path, about: str, engines: int = 1) -> Path | None:
        """Go on until everything is done or the time is up.

        Args:
            results: Folder of the page.
            about: How it was made.
            engines: Engines that write replies at once, each in a process of its own.

        Returns:
            The page; None if the time was up before.
        """
        self._take_over()
        try:
            folders = self._fit()
            if engines > 1:
                for phase in PHASES:
                    self._in_processes(phase, engines)
            with (
                self._bench(folders) as bench,
                self._journal(bench) as journal,
                progress_bar(self.console) as progress,
            ):
                tried = try_all(bench, journal, progress)
                chosen = self._chosen(tried, bench, journal, progress)
                singles = measure_singles(bench, journal, chosen, progress)
                pairs = measure_pairs(bench, journal, chosen, progress)
                effects = side_effects(bench, journal, chosen.alone)
        except TimeUp:
            return None
        return write_page(results, singles=singles, pairs=pairs, effects=effects, tried=tried, about=about)

    def run_share(self, phase: str, share: Share) -> None:
        """One process's share of a phase, kept in a journal of its own until `run` takes it over."""
        own = self.out / share.file
        if (self.out / JOURNAL).exists():
            shutil.copy(self.out / JOURNAL, own)
        with (
            suppress(TimeUp),
            self._bench(self._fit()) as bench,
            self._journal(bench, share.file) as journal,
            progress_bar(self.console) as progress,
        ):
            if phase == "choose":
                try_all(bench, journal, progress, ways=share.of(WAYS))
                return
            tried = try_all(bench, journal)
            if phase == "combine":
                try_all(bench, journal, progress, ways=share.of(_leaders(tried)), prompted=True)
                return
            chosen = self._chosen(tried, bench, journal)
            measure_singles(bench, journal, chosen, progress, share=share)
            measure_pairs(bench, journal, chosen, progress, share=share)
            side_effects(bench, journal, share.of(chosen.alone))

    def _in_processes(self, phase: str, engines: int) -> None:
        """Every share of a phase at once, each with its part of the cores."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(max(1, cores() // engines)),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        command = [sys.executable, "-m", "benchmarks.verifiable", "--model", self.model, "--out", self.out]
        if math.isfinite(self.deadline):
            command += ["--minutes", str(max((self.deadline - time.monotonic()) / 60, 0.01))]
        running = [
            subprocess.Popen([*command, "--share", f"{phase}:{number}/{engines}"], env=environment)
            for number in range(engines)
        ]
        ended = [process.wait() for process in running]
        self._take_over()
        if any(ended):
            raise RuntimeError(f"a process of {phase} ended with {max(ended)}; what it had done is kept")
        if time.monotonic() > self.deadline:
            raise TimeUp

    def _take_over(self) -> None:
        """Move what processes have left into the run's journal."""
        for file in sorted(self.out.glob(Share.files)):
            with file.open(encoding="utf-8") as lines:
                identity = json.loads(next(lines))["identity"]
            with Journal(self.out / JOURNAL, identity) as journal, Journal(file, identity) as theirs:
                for key in theirs:
                    if key not in journal:
                        journal.add(key, theirs[key])
            file.unlink()

    def _chosen(
        self,
        tried: Mapping[str, list[Tried]],
        bench: Bench,
        journal: Journal,
        progress: Progress | None = None,
    ) -> Chosen:
        combined = try_all(bench, journal, progress, ways=_leaders(tried), prompted=True)
        return Chosen(
            {name: best(found).setting for name, found in tried.items()},
            {name: best(found).setting for name, found in combined.items()},
        )

    def _bench(self, folders: Mapping[str, Path]) -> Bench:
        return Bench(
            self.model,
            folders,
            engine_options=ENGINE,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=MAX_TOKENS,
            steering={"capture": {"layers": [LAST_LAYER]}, "max_probes": len(folders)},
        )

    def _journal(self, bench: Bench, file: str = JOURNAL) -> Journal:
        return _TimedJournal(self.out / file, bench.identity, self.deadline)

    def _fit(self) -> dict[str, Path]:
        return fit_all(self.model, self._rows(), self.out, self.console)

    def _rows(self) -> list[LabelledRow]:
        file = self.out / "rows.jsonl"
        if file.exists():
            return read_rows(file)
        if time.monotonic() > self.deadline:
            raise TimeUp
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
