"""Every method fitted to one half of a task's conversations, and the probe that reads them to the other half.

A fit that is killed goes on where it was: activations shard by shard, and method by method (a method that
was not finished starts again).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from ksteer_vllm.bench.engines import model_of
from ksteer_vllm.bench.suite import EVALUATION, Suite, SuiteFile
from ksteer_vllm.data.positions import REPLY, Window
from ksteer_vllm.data.rows import data_digest, labels_of
from ksteer_vllm.data.split import without_instruction
from ksteer_vllm.errors import DataError, UsageError, listing
from ksteer_vllm.fit.activations import Activations, Recorder, default_layer
from ksteer_vllm.fit.pipeline import complete_rows, few_threads, progress_bar
from ksteer_vllm.fit.stacking import fit_once, is_fitted
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.models import check_layers
from ksteer_vllm.spec.families import fits

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset

__all__ = ["ACTIVATIONS", "EVALUATION_WIDTH", "SuitePlan", "fit_suite"]

ACTIVATIONS = "activations"
EVALUATION_WIDTH = 128
"""Half as wide as the probe that steers, and drawn from another seed: another reader, on other text."""

_THROUGH_THE_MODEL = {"loreft", "lorest"}
_NEED_REPLIES = {*_THROUGH_THE_MODEL, "actadd"}


@dataclass(frozen=True)
class SuitePlan:
    """What is fitted, and how.

    methods: names in `spec.families.fits()`; none: all of them. labels: none: all of the data. layer:
    None: 60 % of the depth. layers: several, with tensors for each; none: only `layer`. options: of the
    methods, by name; each takes those it knows. probe_options: of the method mlp alone, where `options` does
    not say otherwise. compat: of mlp, see `FitTask`. window: the positions read, save by methods that say
    their own. keep_activations: leave the recorded shards in SUITE/activations.
    """

    methods: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    layer: int | None = None
    layers: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    probe_options: Mapping[str, Any] = field(default_factory=dict)
    window: Window = REPLY
    compat: str | None = None
    seed: int = 0
    keep_activations: bool = False

    def options_of(self, method: str) -> dict[str, Any]:
        return {**(self.probe_options if method == "mlp" else {}), **self.options}

    @property
    def reads_replies(self) -> bool:
        """Whether some method has a use for the rows' replies."""
        return self.window.needs_reply or bool(_NEED_REPLIES & set(self.methods or fits()))


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
    Raises DataError, UsageError (a suite of something else in `out`), and what vLLM raises for a model it
    cannot load.
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
        known = fits()
        unknown = [name for name in plan.methods if name not in known]
        if unknown:
            raise UsageError(f"method: unknown {unknown[0][:80]!r}; known: {listing(known)}, or all")
        self.plan, self.progress, self.engine_options = plan, progress, dict(engine_options)
        self.methods = plan.methods or tuple(known)
        self.identity = model_of(model, engine_options)
        labels = labels_of(dataset.rows, plan.labels or dataset.labels)
        layer = default_layer(self.identity.num_layers) if plan.layer is None else plan.layer
        self.layers = tuple(sorted(set(plan.layers))) or (layer,)
        self.layer = layer if layer in self.layers else self.layers[len(self.layers) // 2]
        check_layers("layer", self.layers, self.identity.num_layers, UsageError)
        partition = dataset.partition(plan.seed)
        self.rows = {"steering": list(partition.steering), "evaluation": list(partition.evaluation)}
        self.suite = Suite(
            out,
            SuiteFile(
                model=model,
                task=dataset.name,
                data_digest=data_digest(dataset.rows),
                labels=labels,
                layers=self.layers,
                judge=dataset.judge,
                seed=plan.seed,
                engine_options={name: value for name, value in engine_options.items() if _plain(value)},
                prompts={name: tuple(prompts) for name, prompts in partition.prompts.items()},
            ),
        )
        self.writeup = self.suite.folder / "fit" / "results.md"
        self.recorded: dict[str, dict[Window, Activations]] = {"steering": {}, "evaluation": {}}
        self.left_out: dict[str, str] = {}

    def run(self) -> None:
        self._check_folder()
        self.suite.write()
        self._generate_replies()
        todo = [name for name in (*self.methods, EVALUATION) if not self._is_there(name)]
        if todo:
            self._fit_all(todo)
        if not self.writeup.exists():
            from ksteer_vllm.experiments.suite.writeup import write_up

            write_up(self.suite, self.left_out, self._recorded(), self.rows["steering"], self.layer)
        if not self.plan.keep_activations:
            shutil.rmtree(self.suite.folder / ACTIVATIONS, ignore_errors=True)

    def _fit_all(self, todo: Sequence[str]) -> None:
        recorded = self.recorded
        reads = {replace(self._task(name), layer=at).read_layer for name in todo for at in self.layers}
        with (
            few_threads(self.identity),
            Recorder(
                self.suite.file.model,
                sorted(reads),
                engine_options=self.engine_options,
                progress=self.progress,
            ) as recorder,
        ):
            for name in sorted(todo, key=lambda name: name in _THROUGH_THE_MODEL):
                if name in _THROUGH_THE_MODEL:
                    recorder.close()  # its memory is the language model's now
                part = "evaluation" if name == EVALUATION else "steering"
                self._fit(name, replace(self._task(name), recorder=recorder, recorded=recorded[part]))

    def _recorded(self) -> Mapping[Window, Activations]:
        """What was recorded of the steering half, now or by a fit that was interrupted."""
        found, window = self.recorded["steering"], self.plan.window
        if not any(self.layer in activations.streams for activations in found.values()):
            file = self.suite.file
            recorder = Recorder(file.model, [self.layer], engine_options=self.engine_options)
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
        return (self.layer,) if name == EVALUATION else self.layers

    def _is_there(self, name: str) -> bool:
        return is_fitted(self._task(name), self.suite.folder / name, self._layers_of(name))

    def _task(self, name: str) -> FitTask:
        """The task of a method, or of the evaluation probe: other rows, another seed, another width."""
        plan, reads = self.plan, name == EVALUATION
        part = "evaluation" if reads else "steering"
        options = {**plan.options_of(name), "seed": plan.seed}
        if reads:
            options = {"seed": plan.seed + 1, "width": EVALUATION_WIDTH}
        return FitTask(
            self.suite.file.model,
            self.identity,
            self.rows[part],
            self.suite.file.labels,
            self.layer,
            "mlp" if reads else name,
            options,
            self.engine_options,
            self.progress,
            window=REPLY if reads else plan.window,
            folder=self.suite.folder / ACTIVATIONS / part,
            shared_options=True,
            compat=plan.compat if name == "mlp" else None,
        )

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
        """Have the engine give the replies that the data does not, where something reads them.

        The evaluation probe reads text, not what was asked for: its rows are left without instructions.
        """
        wanted = {"evaluation"}
        if self.plan.reads_replies:
            wanted.add("steering")
        for part in sorted(wanted):
            self.rows[part] = complete_rows(
                self.suite.file.model,
                self.rows[part],
                self.suite.folder / f"replies-{part}.jsonl",
                seed=self.plan.seed,
                engine_options=self.engine_options,
                progress=self.progress,
            )
        self.rows["evaluation"] = [without_instruction(row) for row in self.rows["evaluation"]]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _short(value: Any) -> str:
    return listing(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)[:60]
