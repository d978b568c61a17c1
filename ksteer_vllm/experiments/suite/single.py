"""One method fitted to all rows of a task: a probe folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ksteer_vllm.bench.suite import SUITE_FILE
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.suite.common import ACTIVATIONS, Fits
from ksteer_vllm.experiments.suite.plan import SuitePlan
from ksteer_vllm.fit.linear_control import with_linear_control
from ksteer_vllm.fit.pipeline import few_threads, progress_bar
from ksteer_vllm.fit.stacking import fit_at
from ksteer_vllm.probes.probe import Probe

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset

__all__ = ["fit_single"]


def fit_single(
    model: str,
    dataset: TaskDataset,
    out: str | Path,
    plan: SuitePlan,
    *,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Probe:
    """Fit the plan's only method, and leave its probe in `out`.

    A run that was interrupted resumes with the activations it recorded.

    Args:
        model: what vLLM is to load.
        dataset: the labelled rows, all of which are used.
        out: the probe folder to write.
        plan: names exactly one method.
        engine_options: further arguments of `vllm.LLM`.
        console: where progress is shown.

    Returns:
        The probe.

    Raises:
        DataError: for rows the method cannot be fitted to, and for replies the model wrote under
            instructions that do not show their labels.
        UsageError: for a plan that does not suit the model, or a folder that holds a suite.
    """
    (method,), out = plan.methods, Path(out)
    if (out / SUITE_FILE).exists():
        raise UsageError(f"{out}: holds a suite, to which several methods are fitted; take another folder")
    with progress_bar(console) as progress:
        fits = Fits.of(model, dataset, out, plan, engine_options or {}, progress)
        rows, visible = list(dataset.rows), {}
        if plan.reads_replies:
            rows = fits.completed(rows, fits.labels)
            found = fits.check_replies(rows, dataset.rows)
            visible = {one.label: one.as_json() for one in found}
        with few_threads(fits.identity):
            task = fits.task(method, rows, out / ACTIVATIONS)
            probe = with_linear_control(task, fit_at(task, plan.layers))
    if visible:
        probe = probe.with_metadata(training={**probe.metadata.training, "visible_labels": visible})
    probe.save(out)
    fits.clean_up()
    return probe
