"""K-Steering's probe (arXiv 2505.24535): a multi-label MLP on the reply's residual stream. Family `mlp`."""

from __future__ import annotations

from ksteer_vllm.fit.plans import FitPlan
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.fit.train import fit_probe
from ksteer_vllm.probes.probe import Probe

__all__ = ["fit"]


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
    )
    if task.compat is not None:
        probe = probe.with_metadata(settings={"compat": task.compat})
    return probe
