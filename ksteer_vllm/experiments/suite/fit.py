"""Every method fitted to one half of a task's conversations, and the probe that reads them to the other half.

A fit that was killed resumes: activations shard by shard, and method by method (a method that was not
finished starts again).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from ksteer_vllm.bench.ordinary import labelled_replies
from ksteer_vllm.bench.suite import EVALUATION, Suite, SuiteFile
from ksteer_vllm.data.positions import REPLY, Window
from ksteer_vllm.data.rows import data_digest
from ksteer_vllm.data.split import without_instruction
from ksteer_vllm.errors import DataError, UsageError, listing
from ksteer_vllm.experiments.suite.common import ACTIVATIONS, Fits
from ksteer_vllm.experiments.suite.plan import THROUGH_THE_MODEL, SuitePlan
from ksteer_vllm.fit.activations import Activations, Recorder
from ksteer_vllm.fit.pipeline import few_threads, progress_bar
from ksteer_vllm.fit.stacking import fit_once, is_fitted
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.fit.visibility import Visibility, invisible

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset

__all__ = ["EVALUATION_WIDTH", "fit_suite"]

EVALUATION_WIDTH = 128
"""Half as wide as the probe that steers, and drawn from another seed: another reader, on other text."""


def fit_suite(
    model: str,
    dataset: TaskDataset,
    out: str | Path,
    plan: SuitePlan | None = None,
    *,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Suite:
    """Fill the suite folder `out`; probes that are there, fitted to the same in the same way, are kept.

    Of methods that were not named, one that the data does not suit is left out, and the write-up says so.

    Args:
        model: what vLLM is to load.
        dataset: the labelled rows, half of which the methods see.
        out: the suite folder.
        plan: what is fitted, and how; None: every method.
        engine_options: further arguments of `vllm.LLM`.
        console: where progress is shown.

    Returns:
        The suite, with the evaluation probe.

    Raises:
        DataError: for rows a method that was named cannot be fitted to, and for replies the model wrote
            under instructions that do not show their labels.
        UsageError: for a plan that does not suit the model, or another suite in `out`.
    """
    with progress_bar(console) as progress:
        fit = _SuiteFit(model, dataset, Path(out), plan or SuitePlan(), engine_options or {}, progress)
        fit.run()
    return fit.suite


class _SuiteFit:
    """One run of `fit_suite`."""

    def __init__(
        self,
        model: str,
        dataset: TaskDataset,
        out: Path,
        plan: SuitePlan,
        engine_options: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.plan = plan
        self.fits = fits = Fits.of(model, dataset, out, plan, engine_options, progress)
        partition = dataset.partition(plan.seed)
        self.rows = {"steering": list(partition.steering), "evaluation": list(partition.evaluation)}
        self.suite = Suite(
            out,
            SuiteFile(
                model=model,
                task=dataset.name,
                data_digest=data_digest(dataset.rows),
                labels=fits.labels,
                layers=fits.layers,
                judge=dataset.judge,
                seed=plan.seed,
                engine_options={name: value for name, value in engine_options.items() if _plain(value)},
                prompts={name: tuple(prompts) for name, prompts in partition.prompts.items()},
                instructions={
                    label: words for label, words in dataset.instructions.items() if label in fits.labels
                },
            ),
        )
        self.writeup = self.suite.folder / "fit" / "results.md"
        self.recorded: dict[str, dict[Window, Activations]] = {"steering": {}, "evaluation": {}}
        self.left_out: dict[str, str] = {}
        self.visible: list[Visibility] = []

    def run(self) -> None:
        self._check_folder()
        self.suite.write()
        self._generate_replies()
        todo = [name for name in (*self.fits.methods, EVALUATION) if not self._is_there(name)]
        if todo:
            self._fit_all(todo)
        if not self.writeup.exists():
            from ksteer_vllm.experiments.suite.writeup import write_up

            write_up(
                self.suite,
                self.left_out,
                self._recorded(),
                self.rows["steering"],
                self.fits.layer,
                visible=self.visible,
            )
        self.fits.clean_up()

    def _fit_all(self, todo: Sequence[str]) -> None:
        recorded = self.recorded
        reads = {replace(self._task(name), layer=at).read_layer for name in todo for at in self.fits.layers}
        with (
            few_threads(self.fits.identity),
            Recorder(
                self.suite.file.model,
                sorted(reads),
                engine_options=self.fits.engine_options,
                progress=self.fits.progress,
            ) as recorder,
        ):
            for name in sorted(todo, key=lambda name: name in THROUGH_THE_MODEL):
                if name in THROUGH_THE_MODEL:
                    recorder.close()  # its memory is the language model's now
                part = "evaluation" if name == EVALUATION else "steering"
                self._fit(name, replace(self._task(name), recorder=recorder, recorded=recorded[part]))

    def _recorded(self) -> Mapping[Window, Activations]:
        """What was recorded of the steering half, now or by a fit that was interrupted."""
        found, window = self.recorded["steering"], self.plan.window
        if not any(self.fits.layer in activations.streams for activations in found.values()):
            file = self.suite.file
            recorder = Recorder(file.model, [self.fits.layer], engine_options=self.fits.engine_options)
            folder = self.suite.folder / ACTIVATIONS / "steering" / window.name
            kept = recorder.recorded(self.rows["steering"], window, folder)
            return {window: kept} if kept is not None else {}
        return found

    def _fit(self, name: str, task: FitTask) -> None:
        try:
            fit_once(task, self.suite.folder / name, self._layers_of(name))
            self.writeup.unlink(missing_ok=True)  # it is of what there was before
        except DataError as error:
            if self.plan.methods or name in (EVALUATION, "mlp"):
                raise DataError(f"{name}: {error}") from None
            self.left_out[name] = str(error)

    def _layers_of(self, name: str) -> tuple[int, ...]:
        return (self.fits.layer,) if name == EVALUATION else self.fits.layers

    def _is_there(self, name: str) -> bool:
        return is_fitted(self._task(name), self.suite.folder / name, self._layers_of(name))

    def _task(self, name: str) -> FitTask:
        """The task of a method, or of the evaluation probe: other rows, another seed, another width."""
        part = "evaluation" if name == EVALUATION else "steering"
        folder, rows = self.suite.folder / ACTIVATIONS / part, self.rows[part]
        if name != EVALUATION:
            return self.fits.task(name, rows, folder, shared_options=True)
        options = {"seed": self.plan.seed + 1, "width": EVALUATION_WIDTH}
        return self.fits.task("mlp", rows, folder, options=options, window=REPLY, compat=None)

    def _check_folder(self) -> None:
        """Refuse a folder that holds a suite of another model, of other data, or of other halves of them."""
        try:
            found = Suite.open(self.suite.folder).file
        except UsageError:
            return
        for name in ("model", "task", "data_digest", "labels", "layers", "seed"):
            old, new = getattr(found, name), getattr(self.suite.file, name)
            if old != new:
                raise UsageError(
                    f"{self.suite.folder}: holds a suite whose {name} is {_short(old)}, not {_short(new)}; "
                    "take another folder, or delete it"
                )
        if found.prompts != self.suite.file.prompts:
            raise UsageError(
                f"{self.suite.folder}: holds a suite with other held-out prompts; this fit might be fitted "
                "to them: take another folder, or delete it"
            )

    def _generate_replies(self) -> None:
        """Have the engine give the replies that the data does not, where something reads them, and check that
        they show their labels.

        The evaluation probe reads text, not what was asked for: its rows are left without instructions.
        """
        wanted = {"evaluation"}
        if self.plan.reads_replies:
            wanted.add("steering")
        given = [row for part in sorted(wanted) for row in self.rows[part]]
        for part in sorted(wanted):
            self.rows[part] = self.fits.completed(self.rows[part])
        spoken = [row for part in sorted(wanted) for row in self.rows[part]]
        self.visible = self.fits.check_replies(spoken, given)
        self.rows["evaluation"] = [without_instruction(row) for row in self.rows["evaluation"]]
        hidden = tuple(one.label for one in invisible(self.visible))
        checked = [row for row in self.rows["evaluation"] if set(hidden).isdisjoint(row.labels)]
        file = self.suite.file.model_copy(
            update={
                "labelled": tuple(labelled_replies(checked, self.fits.labels)),
                "invisible": hidden,
            }
        )
        self.suite = Suite(self.suite.folder, file)
        self.suite.write()


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _short(value: Any) -> str:
    return listing(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)[:60]
