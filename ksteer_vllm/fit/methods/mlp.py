"""K-Steering's probe (arXiv 2505.24535): a multi-label MLP on the reply's residual stream. Family `mlp`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ksteer_vllm.fit.plans import FitPlan
from ksteer_vllm.fit.task import FitTask, LabelledActivations
from ksteer_vllm.fit.train import fit_probe
from ksteer_vllm.probes.probe import Probe

__all__ = ["GRID", "GRID_NUMBERS", "fit"]

GRID: Final = (
    {"noise": 0.0, "weight_decay": 0.01},
    {"noise": 0.5, "weight_decay": 0.01},
    {"noise": 1.0, "weight_decay": 0.01},
    {"noise": 1.0, "weight_decay": 1.0},
)
"""Regularisations tried where the options give none; the best validation loss decides."""

GRID_NUMBERS: Final = 16_000_000
"""Vectors x hidden size up to which the grid is tried: few vectors are overfitted, and many cost time."""


def fit(task: FitTask) -> Probe:
    """Train the probe, see `ksteer_vllm.fit.train`; it also holds CAA's vectors, for method `add`."""
    plan = task.plan(FitPlan)
    _ = task.parts  # refuses too few rows before an engine starts
    tokens = task.activations()
    probe = fit_probe(
        tokens.stream,
        task.targets,
        tokens.row,
        task.conversation,
        labels=task.labels,
        layer=task.layer,
        model=task.identity,
        plan=plan,
        provenance=task.provenance(),
        progress=task.progress,
        rows=task.rows,
        grid=_grid(task, tokens),
    )
    if task.compat is not None:
        probe = probe.with_metadata(settings={"compat": task.compat})
    return probe


def _grid(task: FitTask, tokens: LabelledActivations) -> Sequence[Mapping[str, float]]:
    """The regularisations to try: those of GRID on little data, unless the options give one."""
    small = len(tokens.stream) * tokens.stream.hidden_size <= GRID_NUMBERS
    given = {name for changes in GRID for name in changes} & set(task.options)
    return GRID if small and not given else ({},)
