"""Steerability as Tan et al. define it (arXiv 2407.12404): how propensity answers to the multiplier.

Per example, the least-squares slope of propensity over multipliers; over examples, the mean slope and the
share with a negative one ("anti-steerable"). Propensity here is the evaluation probe's mean logit of the
target label in the reply, and a multiplier of 1 is the variant's calibrated strength, so slopes of different
variants are in one unit: logits per calibrated strength.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ksteer_vllm.bench.jobs import Reply

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MULTIPLIERS", "propensities", "slope", "steerability"]

MULTIPLIERS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Multiples of the calibrated strength; 0 is the unsteered reply, for every method."""


def slope(multipliers: Sequence[float], propensities: Sequence[float]) -> float:
    """The least-squares slope; missing if fewer than two multipliers have a propensity."""
    x, y = np.asarray(multipliers, float), np.asarray(propensities, float)
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(set(x.tolist())) < 2:
        return float("nan")
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def steerability(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per variant and target: examples, mean slope, share of negative slopes.

    frame: rows of variant, target, prompt (together one example), multiplier, propensity.
    """
    import pandas as pd

    rows = []
    for (variant, target), group in frame.groupby(["variant", "target"], sort=False):
        slopes = np.array(
            [slope(example["multiplier"], example["propensity"]) for _, example in group.groupby("prompt")]
        )
        slopes = slopes[np.isfinite(slopes)]
        rows.append(
            {
                "variant": variant,
                "target": target,
                "examples": len(slopes),
                "slope": slopes.mean() if len(slopes) else np.nan,
                "negative_share": (slopes < 0).mean() if len(slopes) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def propensities(
    unsteered: Sequence[Reply], steered: Mapping[float, Sequence[Reply]], labels: Sequence[str]
) -> pd.DataFrame:
    """Rows of variant, target, prompt, multiplier, propensity: the target's logit, for single labels.

    steered: multiplier -> replies; multiplier 0 is the unsteered reply, for every variant.
    """
    import pandas as pd

    rows = [
        _row(reply, reply.job.tags["variant"], reply.job.tags["target"][0], multiplier)
        for multiplier, replies in steered.items()
        for reply in replies
        if len(reply.job.tags["target"]) == 1
    ]
    variants = dict.fromkeys(row["variant"] for row in rows)
    rows += [_row(reply, v, label, 0.0) for v in variants for label in labels for reply in unsteered]
    return pd.DataFrame(rows, columns=["variant", "target", "prompt", "multiplier", "propensity"])


def _row(reply: Reply, variant: str, label: str, multiplier: float) -> dict[str, Any]:
    return {
        "variant": variant,
        "target": label,
        "prompt": reply.job.tags["prompt"],
        "multiplier": multiplier,
        "propensity": (reply.propensity or {}).get(label, float("nan")),
    }
