"""What a linear probe reads of the replies an MLP was tested on: a control that costs about a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from ksteer_vllm.fit.heldout import evaluate
from ksteer_vllm.fit.logistic import logistic_regression
from ksteer_vllm.fit.methods.linear import LinearPlan
from ksteer_vllm.fit.statistics import standardisation
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["CONTROL", "better", "control_line", "with_linear_control"]

CONTROL: Final = "linear_control"
"""In an MLP's `training`: AUROC and balanced accuracy of the control on the held-out replies, label means."""

_ITERATIONS: Final = 30
"""Of L-BFGS: all that the control is given, so a linear probe fitted to the end may read better still."""
_NUMBERS: Final = 16_000_000
"""Vectors x hidden size that the control is fitted to; of more, so many are taken at even distances."""
_FIGURES: Final = ("auroc", "balanced_accuracy")


def with_linear_control(task: FitTask, probe: Probe) -> Probe:
    """The probe with the control's figures, see CONTROL, at its own layer and on its own split.

    Args:
        task: The fit that made the probe, with what it recorded; without that, nothing is added.
        probe: Without figures to compare (of another family, or fitted with cross-entropy) it stays as it is.
    """
    of_mlp = probe.metadata.metrics.get("replies", {}).get("mean", {})
    if probe.metadata.family != "mlp" or "balanced_accuracy" not in of_mlp or not task.recorded:
        return probe
    train, test = replace(task, layer=probe.metadata.layer).train_and_test()
    mean, std = standardisation(train.stream)
    count = min(len(train.stream), max(1, _NUMBERS // train.stream.hidden_size))
    chosen = torch.linspace(0, len(train.stream) - 1, count).long()
    shown = train.targets[chosen] > 0.5
    if not (shown.any(0) & ~shown.all(0)).all():
        return probe
    z = train.stream.standardised(mean, std).take(chosen)
    weight, bias, _ = logistic_regression(z, shown, l2=LinearPlan().l2, max_iter=_ITERATIONS)
    logits = test.stream.map(lambda x: (x - mean) / std @ weight.T + bias)
    found = evaluate(logits, test.targets, test.row, task.labels)["replies"]["mean"]
    control = {name: found[name] for name in _FIGURES}
    return probe.with_metadata(training={**probe.metadata.training, CONTROL: control})


def control_line(probe: Probe) -> str | None:
    """One sentence, if the control reads held-out replies better than the probe."""
    control = probe.metadata.training.get(CONTROL)
    return None if control is None else better(control, probe.metadata.metrics["replies"]["mean"])


def better(linear: Mapping[str, Any], mlp: Mapping[str, Any]) -> str | None:
    """One sentence, if a linear probe has the higher AUROC on the same held-out replies.

    Args:
        linear: Its label means, by measure.
        mlp: Those of the MLP; without balanced accuracy, as after a fit with cross-entropy, nothing is said.
    """
    if "balanced_accuracy" not in mlp or linear["auroc"] <= mlp["auroc"]:
        return None
    of_linear, of_mlp = (
        f"AUROC {found['auroc']:.3f}, balanced accuracy {found['balanced_accuracy']:.3f}"
        for found in (linear, mlp)
    )
    return f"A linear probe reads held-out replies better ({of_linear}) than the MLP ({of_mlp})"
