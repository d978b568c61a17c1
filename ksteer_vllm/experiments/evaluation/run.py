"""The evaluation of a suite: what is generated and measured, in two batches and a few readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.coherence import CoherenceRule, repetition
from ksteer_vllm.bench.combinations import combinations
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.judges import ENDPOINT, Judge, judge_for
from ksteer_vllm.bench.judges.probe import EvaluationProbe, check_reader
from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.evaluation.displacement import Displacement
from ksteer_vllm.experiments.evaluation.forced import EXACT_UP_TO, TOP_TOKENS, ForcedReader
from ksteer_vllm.experiments.evaluation.matching import Attempt
from ksteer_vllm.experiments.evaluation.metrics import reply_frame, towards
from ksteer_vllm.experiments.evaluation.outcome import STEPS_OF, Evaluation, Matched
from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan
from ksteer_vllm.experiments.evaluation.projections import mean_streams, projected, worth_a_point
from ksteer_vllm.experiments.evaluation.prompted import prompted_and_steered, prompted_jobs
from ksteer_vllm.experiments.evaluation.settings import Setting, jobs_of, step_settings, unsteered_jobs
from ksteer_vllm.experiments.evaluation.steerability import MULTIPLIERS, propensities

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress

__all__ = ["JOURNAL", "evaluate_suite"]

JOURNAL = "journal.jsonl"
_PROJECTED_VARIANTS = 3


def evaluate_suite(
    suite: Suite,
    settings: Sequence[Setting],
    plan: EvaluationPlan,
    folder: Path,
    *,
    rule: CoherenceRule | None = None,
    together: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Generate, score and judge. A run that was interrupted resumes with the replies in `folder`.

    Args:
        suite: the suite.
        settings: the variants, each with its strength for every size.
        plan: what to evaluate, with nothing left open.
        folder: where the journal is kept.
        rule: the coherence rule; None: made from the unsteered replies.
        together: name of the variant that is also tried on prompts that ask for the labels; None: the first.
        console: where progress is shown.

    Returns:
        Everything the write-up is made from.

    Raises:
        UsageError: if the plan does not fit the suite, or its evaluation probe judges and is at chance.
    """
    from ksteer_vllm.fit.pipeline import few_threads, progress_bar

    file = suite.file
    prompts = file.prompts.get("evaluation", ())[: plan.prompts]
    if not prompts:
        raise UsageError(f"{suite.folder}: the suite has no evaluation prompts")
    if not settings:
        raise UsageError(
            "variants: none has a calibrated strength; run `ksteer calibrate` on the suite first"
        )
    targets = combinations(file.labels, plan.sizes)
    used = sorted({setting.variant.probe for setting in settings})
    options = {**file.engine_options, "max_logprobs": max(EXACT_UP_TO, TOP_TOKENS)}
    with progress_bar(console) as progress:
        judge = _judge(suite, plan, progress)
        with (
            few_threads(suite.probes[used[0]].metadata.model),
            Bench(
                file.model,
                {name: suite.paths[name] for name in used},
                reader=suite.evaluation,
                engine_options=options,
                temperature=plan.temperature,
                max_tokens=plan.max_tokens,
            ) as bench,
            Journal(folder / JOURNAL, bench.identity) as journal,
        ):
            run = _EvaluationRun(
                suite, list(settings), plan, bench, journal, progress, prompts, targets, judge, rule, together
            )
            return run.evaluation()


def _judge(suite: Suite, plan: EvaluationPlan, progress: Progress) -> Judge:
    name = plan.judge or suite.file.judge
    if name == EvaluationProbe.name and not plan.allow_chance_judge:
        check_reader(suite.evaluation, suite.file.labels)
    shown = {"progress": progress} if name == ENDPOINT else {}
    return judge_for(name, suite.file.labels, **shown, **plan.judge_options)


@dataclass
class _EvaluationRun:
    suite: Suite
    settings: list[Setting]
    plan: EvaluationPlan
    bench: Bench
    journal: Journal
    progress: Progress
    prompts: Sequence[Any]
    targets: list[tuple[str, ...]]
    judge: Judge
    rule: CoherenceRule | None
    together: str | None

    def evaluation(self) -> Evaluation:
        labels, plan = self.suite.file.labels, self.plan
        singles = [target for target in self.targets if len(target) == 1]
        plain = unsteered_jobs(self.prompts)
        main = self._jobs(self.settings, self.targets)
        others = {
            m: self._jobs(self.settings, singles, multiplier=m) for m in MULTIPLIERS if m not in (0.0, 1.0)
        }
        groups = self._generate(
            [plain, main, self._prompted(), *others.values()], "generating at calibrated strengths"
        )
        unsteered, steered, prompted = groups[:3]
        self._rule = self.rule or CoherenceRule.of(unsteered)
        displacement, exact = self._displacement(unsteered)
        moved = displacement.table(self.settings)
        strengths, matched_settings = self._matched(displacement, moved)
        step_strengths, step_counts = self._steps(displacement, moved)
        matched, stepped = self._generate(
            [self._jobs(matched_settings, self.targets), self._jobs(step_counts, self.targets)],
            "generating at equal displacement",
        )
        own = self._seen(unsteered, [*prompted, *steered])
        by_multiplier = {1.0: steered, **dict(zip(others, groups[3:], strict=True))}
        return Evaluation(
            plan=plan,
            settings=self.settings,
            targets=self.targets,
            judge=self.judge.name,
            rule=self._rule,
            exact_kl=exact,
            own=own,
            matched=self._seen(unsteered, matched),
            steps=self._seen(unsteered, stepped) if stepped else None,
            moved=moved,
            strengths=strengths,
            step_strengths=step_strengths,
            propensities=propensities(unsteered, by_multiplier, [t[0] for t in singles]),
            points=self._points(unsteered, steered),
            samples=[r for r in [*unsteered, *prompted, *steered] if r.job.tags["prompt"] == 0],
            not_judged=int(own["success"].isna().sum()),
            source={
                "model": self.suite.file.model,
                "task": self.suite.file.task,
                "suite": str(self.suite.folder),
                "digests": {
                    name: self.suite.probes[name].metadata.digest
                    for name in sorted({s.variant.probe for s in self.settings})
                },
                "evaluation_probe": self.suite.evaluation.metadata.digest if self.suite.evaluation else None,
                "plan": plan.model_dump(mode="json", exclude={"judge_options"}),
                "coherence": self._rule.model_dump(mode="json"),
                "labels": list(labels),
            },
        )

    def _jobs(self, settings: Sequence[Setting], targets: Any, multiplier: float = 1.0) -> list[Job]:
        labels, avoid = self.suite.file.labels, self.plan.avoid
        return jobs_of(settings, targets, self.prompts, labels, avoid, multiplier=multiplier)

    def _prompted(self) -> list[Job]:
        """The labels asked for in the prompt, alone and together with one variant; none where the task has no
        instructions."""
        instructions = self.suite.file.instructions
        jobs = prompted_jobs(self.targets, self.prompts, instructions)
        setting = next((s for s in self.settings if s.name == self.together), self.settings[0])
        return jobs + prompted_and_steered(
            setting, self.targets, self.prompts, instructions, self.suite.file.labels, self.plan.avoid
        )

    def _generate(self, groups: Sequence[Sequence[Job]], description: str) -> list[list[Reply]]:
        """The replies of every group; all of them are one batch."""
        jobs = [job for group in groups for job in group]
        replies = iter(
            self.bench.run(jobs, journal=self.journal, progress=self.progress, description=description)
        )
        return [[next(replies) for _ in group] for group in groups]

    def _displacement(self, unsteered: Sequence[Reply]) -> tuple[Displacement, bool]:
        on_prompt = [name for name, probe in self.suite.probes.items() if probe.metadata.default_where]
        reader = ForcedReader(self.bench, on_prompt)
        texts = [text for reply in unsteered if (text := reader.text(reply)) is not None][: self.plan.texts]
        if not texts:
            raise UsageError("every unsteered reply is empty: nothing can be measured on this model")
        labels, avoid = self.suite.file.labels, self.plan.avoid
        found = Displacement(
            reader, texts, self.targets, labels, avoid, journal=self.journal, progress=self.progress
        )
        return found, reader.exact

    def _matched(
        self, displacement: Displacement, moved: pd.DataFrame
    ) -> tuple[list[Matched], list[Setting]]:
        random = [s.name for s in self.settings if s.variant.method == "random"]
        common = displacement.common(moved, without=random)
        wanted = {(s.name, size): common[size] for s in self.settings for size in s.alpha if size in common}
        settings = [s.at({k: a for k, a in s.alpha.items() if k in common}) for s in self.settings]
        points = displacement.matched(settings, wanted)
        return _as_matched(points, wanted), [s.at(_strengths_of(points, s)) for s in settings]

    def _steps(self, displacement: Displacement, moved: pd.DataFrame) -> tuple[list[Matched], list[Setting]]:
        """K-Steering by number of steps, each at the displacement of the calibrated 8 steps."""
        base = next((s for s in self.settings if s.name == STEPS_OF), None)
        if base is None:
            return [], []
        means = moved[moved["variant"] == base.name].groupby("size")["shift"].mean()
        settings = step_settings(
            base.at({k: a for k, a in base.alpha.items() if k in means}), self.plan.steps
        )
        wanted = {(s.name, size): float(means[size]) for s in settings for size in s.alpha}
        points = displacement.matched(settings, wanted)
        return _as_matched(points, wanted), [s.at(_strengths_of(points, s)) for s in settings]

    def _seen(self, unsteered: Sequence[Reply], steered: Sequence[Reply]) -> pd.DataFrame:
        replies = [*unsteered, *steered]
        frame = reply_frame(
            replies,
            self.judge.judge(replies),
            [self._rule.coherent(reply) for reply in replies],
            [repetition(reply.text) for reply in replies],
            self.suite.file.labels,
        )
        return towards(frame, self.suite.file.labels, self.targets)

    def _points(self, unsteered: Sequence[Reply], steered: Sequence[Reply]) -> pd.DataFrame | None:
        if self.suite.evaluation is None or 1 not in self.plan.sizes:
            return None
        shown = [s.name for s in self.settings if s.name in (STEPS_OF, "CAA", "random direction")]
        shown = (shown or [s.name for s in self.settings])[:_PROJECTED_VARIANTS]
        chosen = worth_a_point([*unsteered, *steered], shown)
        if len(chosen) < 2:
            return None
        streams = mean_streams(self.bench, chosen, self.suite.evaluation.metadata.layer)
        return projected(streams, chosen)


def _as_matched(
    points: dict[tuple[str, int], Attempt], wanted: dict[tuple[str, int], float]
) -> list[Matched]:
    return [Matched(*cell, *point, wanted[cell]) for cell, point in points.items()]


def _strengths_of(points: dict[tuple[str, int], Attempt], setting: Setting) -> dict[int, float]:
    return {size: alpha for (name, size), (alpha, _) in points.items() if name == setting.name}
