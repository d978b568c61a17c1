"""A calibration: every strength of every cell in one batch, then a few more around the best ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

from ksteer_vllm.bench.combinations import avoided, combinations
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.judges import Judge
from ksteer_vllm.bench.runner import ReadingRunner
from ksteer_vllm.bench.unsteered import unsteered
from ksteer_vllm.bench.verdicts import Verdicts
from ksteer_vllm.data.rows import Prompt
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration.bisect import next_strengths
from ksteer_vllm.experiments.calibration.cells import OpenCell, targets_of
from ksteer_vllm.experiments.calibration.grid import has_natural_strength, log_grid, towards_shift
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.record import CalibratedCell, Calibration
from ksteer_vllm.experiments.calibration.scores import Scored, Scores
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject

__all__ = ["calibrate", "check_plan"]

_PILOTS = 2


def check_plan(subject: CalibrationSubject, plan: CalibrationPlan, judge: Judge | None) -> None:
    """Check that a plan can be carried out on a subject.

    Raises:
        UsageError: For a metric that lacks its judge or evaluation probe, a size or a layer that the subject
            does not have, or a subject without prompts.
    """
    if plan.metric == "judge" and judge is None:
        raise UsageError("metric: 'judge' needs a judge; take `--judge`, or `--metric propensity`")
    if plan.metric == "propensity" and subject.reader is None:
        raise UsageError("metric: 'propensity' needs a suite's evaluation probe; take `--metric judge`")
    if not subject.prompts:
        raise UsageError(f"{subject.folder}: has no calibration prompts; fit the suite again")
    combinations(subject.labels, plan.sizes)
    for variant in subject.variants:
        subject.layers_of(variant, plan.layers)


def calibrate(
    subject: CalibrationSubject,
    plan: CalibrationPlan,
    bench: ReadingRunner,
    judge: Judge | None,
    *,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate every variant of the subject.

    Args:
        subject: The variants, and the prompts they are calibrated on.
        plan: The strengths to try, and how to choose among them.
        bench: An engine that holds the subject's probes.
        judge: Who says which labels a reply shows; None if the metric is the evaluation probe's.
        journal: Keeps every reply as it comes in; replies that are already there are not generated again.
        progress: Where to show how many replies are done.

    Returns:
        A cell for every variant, size and layer, with the strengths that were tried and chosen.

    Raises:
        UsageError: As `check_plan`.
    """
    check_plan(subject, plan, judge)
    run = _CalibrationRun(subject, plan, bench, judge, journal, progress)
    cells = run.cells()
    for number in range(plan.rounds + 1):
        wanted = [
            (cell, alpha)
            for cell in cells
            for alpha in (
                cell.grid
                if number == 0
                else next_strengths(cell.scores, cell.coherent, (cell.grid[0], cell.grid[-1]))
            )
        ]
        if not wanted:
            break
        run.fill(wanted, f"bisection, round {number}" if number else f"{len(cells)} cells")
    return run.result(cells)


@dataclass
class _CalibrationRun:
    subject: CalibrationSubject
    plan: CalibrationPlan
    bench: ReadingRunner
    judge: Judge | None
    journal: Journal | None
    progress: Progress | None
    prompts: tuple[Prompt, ...] = field(init=False)
    plain: dict[int, Reply] = field(init=False)
    scores: Scores = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = self.subject.prompts[: self.plan.prompts]
        verdicts = Verdicts(self.judge)
        found = unsteered(
            self.bench,
            self.prompts,
            verdicts,
            labelled=self.subject.labelled,
            budget=self.plan.budget,
            seed=self.plan.seed,
            journal=self.journal,
            progress=self.progress,
        )
        self.plain = {reply.job.seed: reply for reply in found.replies[: len(self.prompts)]}
        self.scores = Scores(found.rule, verdicts, self.plan.metric)

    def cells(self) -> list[OpenCell]:
        """All cells, with the strengths of their grids."""
        plan, subject = self.plan, self.subject
        targets = {
            size: targets_of(subject.labels, size, len(self.prompts)) for size in sorted(set(plan.sizes))
        }
        places = {
            (variant.name, layer): OpenCell(variant, 1, layer, targets_of(subject.labels, 1, 1))
            for variant in subject.variants
            for layer in subject.layers_of(variant, plan.layers)
        }
        centres = self._centres(places)
        return [
            OpenCell(
                place.variant,
                size,
                place.layer,
                targets[size],
                tuple(log_grid(centres[name], plan.strengths)),
            )
            for size in targets
            for name, place in places.items()
        ]

    def fill(self, wanted: Sequence[tuple[OpenCell, float]], description: str) -> None:
        """Try the strengths, all in one batch, and keep their points in the cells."""
        jobs: list[Job] = []
        slices = []
        for cell, alpha in wanted:
            found = cell.jobs(alpha, self.prompts, self.subject.labels, self.plan.avoid, self.plan.seed)
            slices.append(slice(len(jobs), len(jobs) + len(found)))
            jobs += found
        replies = self._run(jobs, description)
        for (cell, alpha), part in zip(wanted, slices, strict=True):
            here = replies[part]
            targets = [tuple(reply.job.tags["target"]) for reply in here]
            cell.scored[alpha] = self.scores.scored(here, targets)
            cell.points[alpha] = self.scores.point(alpha, cell.scored[alpha])

    def result(self, cells: Sequence[OpenCell]) -> Calibration:
        plain = {cell.size: self._plain(cell) for cell in cells}
        found = [cell.calibrated(plain[cell.size], self.plan.metric) for cell in cells]
        return Calibration(
            variants=self.subject.variants,
            metric=self.plan.metric,
            judge=self.judge.name if self.judge is not None else None,
            avoid=self.plan.avoid,
            coherence=self.scores.rule,
            digests=self.subject.digests,
            temperature=self.bench.temperature,
            max_tokens=self.bench.max_tokens,
            layers={variant.name: _best_layer(variant.name, found) for variant in self.subject.variants},
            unsteered={size: self.scores.point(0.0, scored) for size, scored in plain.items()},
            cells=tuple(found),
        )

    def _plain(self, cell: OpenCell) -> list[Scored]:
        """The unsteered replies to the cell's prompts, with the same seeds, seen from its targets."""
        pairs = [
            (self.plain[self.plan.seed + k], target)
            for target, chosen in cell.targets.combinations
            for k in chosen
        ]
        return self.scores.scored([reply for reply, _ in pairs], [target for _, target in pairs])

    def _centres(self, places: Mapping[tuple[str, int | None], OpenCell]) -> dict[Any, float]:
        """Place -> natural strength, where alpha has no unit of its own found from the shift it causes."""
        centres = {name: has_natural_strength(place.variant) for name, place in places.items()}
        piloted = [name for name, natural in centres.items() if natural is None]
        strengths = dict.fromkeys(piloted, 1.0)
        for number in range(_PILOTS if piloted else 0):
            jobs = [(name, job) for name in piloted for job in self._pilot(places[name], strengths[name])]
            replies = self._run([job for _, job in jobs], f"natural strengths, round {number + 1}")
            for name in piloted:
                shifts = [reply.shift for (of, _), reply in zip(jobs, replies, strict=True) if of == name]
                strengths[name] = towards_shift(strengths[name], shifts)
        return {name: strengths[name] if natural is None else natural for name, natural in centres.items()}

    def _pilot(self, place: OpenCell, alpha: float) -> list[Job]:
        found = []
        for number, (target, _) in enumerate(place.targets.combinations):
            avoid = avoided(self.subject.labels, target, self.plan.avoid)
            spec = place.variant.spec(target, avoid, alpha, layer=place.layer, report=True)
            k = number % len(self.prompts)
            tags = {"variant": place.variant.name, "pilot": alpha}
            found.append(Job(self.prompts[k], spec, self.plan.seed + k, tags))
        return found

    def _run(self, jobs: Sequence[Job], description: str) -> list[Reply]:
        return self.bench.run(jobs, journal=self.journal, progress=self.progress, description=description)


def _best_layer(variant: str, cells: Sequence[CalibratedCell]) -> int | None:
    """The layer with the highest mean score at the best strengths, the lowest of equals."""
    scores: dict[int | None, list[float]] = {}
    for cell in cells:
        if cell.variant == variant:
            point = cell.at(cell.best)
            scores.setdefault(cell.layer, []).append(point.score if point is not None else 0.0)
    return max(scores, key=lambda layer: (sum(scores[layer]) / len(scores[layer]), -(layer or 0)))
