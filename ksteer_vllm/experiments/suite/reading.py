"""What a suite's probes read on held-out text, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ksteer_vllm.bench.chance import INTERVAL, at_chance
from ksteer_vllm.fit.linear_control import better
from ksteer_vllm.fit.visibility import Visibility
from ksteer_vllm.probes.probe import Probe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REMEDY", "judge_frame", "judge_line", "linear_reads_better", "visibility_frame"]

REMEDY = ": more data, or more noise or weight decay in the MLP's fit, may be needed."
"""What follows where an MLP reads worse than a linear probe."""


def linear_reads_better(probes: Mapping[str, Probe]) -> str | None:
    """One sentence, if the suite's linear probe reads held-out replies better than its MLP.

    Both are tested on the same rows: the methods of a suite share a split.
    """
    if not {"mlp", "linear"} <= set(probes):
        return None
    linear, mlp = (probes[name].metadata.metrics["replies"]["mean"] for name in ("linear", "mlp"))
    line = better(linear, mlp)
    return None if line is None else f"{line}{REMEDY}"


def judge_line(evaluation: Probe | None, labels: Sequence[str]) -> str | None:
    """One sentence, if the evaluation probe is at chance for some label."""
    poor = at_chance(evaluation.metadata.metrics, labels) if evaluation is not None else {}
    if not poor:
        return None
    figures = ", ".join(f"{label} {accuracy}" for label, accuracy in poor.items())
    return (
        f"The evaluation probe is no judge of {figures} (balanced accuracy on held-out replies): "
        "`ksteer calibrate` will ask for another judge."
    )


def judge_frame(evaluation: Probe | None) -> pd.DataFrame | None:
    """A row per label: the evaluation probe's balanced accuracy and its interval; None if not kept."""
    import pandas as pd

    labels = evaluation.metadata.metrics.get("replies", {}).get("labels", {}) if evaluation else {}
    rows = [
        {
            "label": label,
            "balanced accuracy": found["balanced_accuracy"],
            "from": found[INTERVAL][0],
            "to": found[INTERVAL][1],
            "replies with it": found["positives"],
        }
        for label, found in labels.items()
        if INTERVAL in found
    ]
    return pd.DataFrame(rows) if rows else None


def visibility_frame(visible: Sequence[Visibility]) -> pd.DataFrame:
    """A row per label: what a bag of words finds of it."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "label": one.label,
                "balanced accuracy": one.accuracy.value,
                "from": one.accuracy.low,
                "to": one.accuracy.high,
                "auroc": one.auroc,
            }
            for one in visible
        ]
    )
