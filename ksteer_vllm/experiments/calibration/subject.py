"""What is calibrated: the variants of a suite, or the methods of one probe folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.ordinary import labelled_replies
from ksteer_vllm.bench.suite import EVALUATION, SUITE_FILE, Suite
from ksteer_vllm.bench.variants import Variant, in_a_metric, variants_for
from ksteer_vllm.data.rows import LabelledRow, Prompt
from ksteer_vllm.errors import UsageError, choices, listing
from ksteer_vllm.probes.metadata import METADATA_FILE
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset

__all__ = ["CalibrationSubject"]

RANDOM = "random"
"""The method of random directions, controls that take the strength of the vectors they are like."""

_FITTED_TO = (
    "the calibration prompts come from the data the probe was fitted to, so strengths and shares may look "
    "better than on new prompts; a suite (`ksteer fit --method all --out FOLDER`) keeps some prompts apart"
)


@dataclass(frozen=True)
class CalibrationSubject:
    """The probes and variants to calibrate, and the prompts to do it on.

    Attributes:
        folder: Where the calibration is written.
        model: What vLLM is to load.
        paths: Probe folders, by name.
        probes: The same probes, read.
        reader: The evaluation probe, if there is one.
        labels: All labels of the data.
        prompts: The calibration prompts.
        judge: Name of the judge that suits the data.
        engine_options: Further arguments of `vllm.LLM`.
        variants: The variants to calibrate.
        task: Name of the task.
        notes: Caveats that a reader of the results has to know.
        labelled: Labelled replies of the data, for the limit on perplexity.
        invisible: Labels that the replies the probes were fitted to do not show.
    """

    folder: Path
    model: str
    paths: Mapping[str, Path]
    probes: Mapping[str, Probe]
    reader: Probe | None
    labels: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    judge: str
    engine_options: Mapping[str, Any]
    variants: tuple[Variant, ...]
    task: str = ""
    notes: tuple[str, ...] = ()
    labelled: tuple[LabelledRow, ...] = ()
    invisible: tuple[str, ...] = ()

    @classmethod
    def of_suite(cls, folder: str | Path) -> CalibrationSubject:
        """The subject that a suite is. Raises UsageError if the folder is not a suite, or has no probes."""
        suite = Suite.open(folder)
        if not suite.paths:
            raise UsageError(
                f"{folder}: holds no probe; fit some with `ksteer fit --method all --out {folder}`"
            )
        return cls(
            suite.folder,
            suite.file.model,
            suite.paths,
            suite.probes,
            suite.evaluation,
            suite.file.labels,
            tuple(suite.file.prompts.get("calibration", ())),
            suite.file.judge,
            suite.file.engine_options,
            tuple(variants_for({name: probe.metadata for name, probe in suite.probes.items()})),
            suite.file.task,
            labelled=suite.file.labelled,
            invisible=suite.file.invisible,
        )

    @classmethod
    def of_probe(
        cls, folder: str | Path, dataset: TaskDataset, *, model: str = "", judge: str = ""
    ) -> CalibrationSubject:
        """The subject that one probe folder is, on the calibration prompts of a task.

        Args:
            folder: The probe folder.
            dataset: The task.
            model: What vLLM is to load; empty: the model the probe was fitted on.
            judge: Name of the judge; empty: the task's.

        Raises:
            ProbeError: For a probe that cannot be read.
            UsageError: For a judge that cannot judge this probe.
        """
        folder = Path(folder)
        probe = Probe.load(folder)
        judge = judge or dataset.judge
        if judge == "probe":
            raise UsageError(
                "judge: a probe cannot be the judge of itself; take `--judge openai` with `--judge-url`, or "
                "a suite (`ksteer fit --method all`), which has an evaluation probe"
            )
        name, family = folder.resolve().name, probe.metadata.family
        unavailable = probe.metadata.settings.get("unavailable", ())
        variants = tuple(
            Variant(name=method, probe=name, family=family, method=method)
            for method, use in FAMILIES[family].methods.items()
            if "alpha" in use.takes and method not in unavailable
        )
        visible = probe.metadata.training.get("visible_labels", {})
        variants += tuple(in_a_metric(name, probe.metadata))
        return cls(
            folder,
            model or probe.metadata.model.name,
            {name: folder},
            {name: probe},
            None,
            probe.labels,
            tuple(dataset.partition(0).prompts["calibration"]),
            judge,
            {},
            variants,
            dataset.name,
            (_FITTED_TO,) if _may_be_fitted_to(probe, dataset) else (),
            tuple(labelled_replies(dataset.rows, probe.labels)),
            tuple(label for label, found in visible.items() if not found["visible"]),
        )

    @staticmethod
    def is_suite(folder: str | Path) -> bool:
        """Whether the folder is a suite. Raises UsageError if it is neither a suite nor a probe folder."""
        folder = Path(folder)
        if (folder / SUITE_FILE).exists():
            return True
        if (folder / METADATA_FILE).exists():
            return False
        raise UsageError(
            f"{folder}: neither a suite ({SUITE_FILE}, from `ksteer fit --method all`) nor a probe folder "
            f"({METADATA_FILE})"
        )

    def only(self, names: Sequence[str]) -> CalibrationSubject:
        """The subject with only some of its variants.

        Args:
            names: Names of variants, or of probes, which stand for all their variants; empty: all but random
                directions.

        Raises:
            UsageError: For an unknown name, or if nothing is left to calibrate.
        """
        chosen = [variant for variant in self.variants if variant.method != RANDOM]
        if names:
            known = {variant.name for variant in self.variants} | set(self.probes)
            if unknown := [name for name in names if name not in known]:
                there_are = choices(unknown[0], (variant.name for variant in self.variants), 40)
                raise UsageError(f"variants: unknown {listing(map(repr, unknown))}; there are: {there_are}")
            chosen = [v for v in self.variants if v.name in names or (v in chosen and v.probe in names)]
        if not chosen:
            there_are = listing((variant.name for variant in self.variants), 40)
            raise UsageError(
                f"variants: {listing(map(repr, names or self.probes))} has nothing to calibrate; there are: "
                f"{there_are}"
            )
        return replace(self, variants=tuple(chosen))

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the variants' probes and of the evaluation probe, by name."""
        used = {variant.probe: self.probes[variant.probe] for variant in self.variants}
        reader = {EVALUATION: self.reader} if self.reader is not None else {}
        return {name: found.metadata.digest for name, found in {**used, **reader}.items()}

    def layers_of(self, variant: Variant, wanted: Sequence[int]) -> tuple[int | None, ...]:
        """The layers to try a variant at; None: the probe's only one, or those of the variant's own.

        wanted: empty for its main layer. Raises UsageError for one it was not fitted at.
        """
        if "layers" in variant.settings:
            return (None,)
        metadata = self.probes[variant.probe].metadata
        has = metadata.layers or (metadata.layer,)
        absent = [layer for layer in wanted if layer not in has]
        if absent:
            raise UsageError(
                f"layers: {variant.probe!r} was fitted at {listing(has, 100)}, not at {listing(absent)}; "
                f"fit it with `--layers {','.join(map(str, wanted))}`"
            )
        if wanted:
            return tuple(wanted)
        return (metadata.layer,) if metadata.layers else (None,)


def _may_be_fitted_to(probe: Probe, dataset: TaskDataset) -> bool:
    """Whether prompts taken from the task's rows are among those of the probe's own data."""
    return not dataset.prompts and probe.metadata.training.get("data_digest") == dataset.digest
