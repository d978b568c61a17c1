"""From replies and verdicts to tables: one row per reply, then means over replies that were steered alike.

A reply is a success for a target if its verdict shows every label of it, and on target if it is also
coherent: by the judge's word, where it gives one, and by the coherence rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ksteer_vllm.bench.combinations import name_of
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.judges import Verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURES", "READING", "UNSTEERED", "reply_frame", "summarise", "towards"]

UNSTEERED = "unsteered"

MEASURES = {
    "on_target": "on target",
    "success": "success",
    "coherent": "coherent",
    "target_probability_change": "Δ P(target)",
    "weakest_probability_change": "Δ P(weakest target)",
    "others_probability_change": "Δ P(other labels)",
    "others_shown": "other labels shown",
    "others_shown_change": "Δ other labels shown",
    "nll": "nats per token",
    "nll_change": "Δ nats per token",
    "repetition": "repetition",
    "tokens": "tokens",
    "prompt_tokens": "prompt tokens",
}
"""Columns of `towards` that are averaged, and their names in tables."""

READING = ("on_target", "success", "coherent", "nll", "repetition", "tokens", "prompt_tokens")
"""The measures that describe how replies read."""


def reply_frame(
    replies: Sequence[Reply],
    verdicts: Sequence[Verdict],
    coherent: Sequence[bool],
    repetition: Sequence[float],
    labels: Sequence[str],
) -> pd.DataFrame:
    """One row per reply: its job's tags (`variant`, `prompt`, `target`, ...), what the judge and the
    evaluation probe say of every label, and how it reads.

    coherent, repetition: by the coherence rule. Columns `shows:LABEL` are 0, 1 or missing (not judged),
    `logit:LABEL` the probe's mean logit, `coherent` 0 or 1.
    """
    import pandas as pd

    rows = []
    for reply, verdict, by_rule, repeated in zip(replies, verdicts, coherent, repetition, strict=True):
        row = dict(reply.job.tags)
        target = tuple(row.pop("target", ()))
        row |= {"target": name_of(target), "size": len(target), "text": reply.text}
        row |= {"tokens": reply.tokens, "nll": np.nan if reply.nll is None else reply.nll}
        row |= {"prompt_tokens": np.nan if reply.prompt_tokens is None else reply.prompt_tokens}
        row |= {"repetition": repeated, "coherent": float(by_rule and verdict.coherent is not False)}
        logits = reply.propensity or {}
        for label in labels:
            row[f"shows:{label}"] = float(label in verdict.shown) if verdict.judged else np.nan
            row[f"logit:{label}"] = logits.get(label, np.nan)
        rows.append(row)
    return pd.DataFrame(rows)


def towards(frame: pd.DataFrame, labels: Sequence[str], targets: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Every reply seen from its target, and every unsteered one from each of `targets`, changes included.

    frame: of `reply_frame`; a change is against the unsteered reply to the same prompt, which must be
    there. Probabilities are sigmoids of the evaluation probe's mean logits. Missing where not judged or not
    read.
    """
    import pandas as pd

    plain = frame[frame["variant"] == UNSTEERED]
    baseline = plain.drop_duplicates("prompt").set_index("prompt")
    parts = []
    for target in targets:
        others = [label for label in labels if label not in target]
        steered = frame[(frame["target"] == name_of(target)) & (frame["variant"] != UNSTEERED)]
        group = pd.concat([plain, steered], ignore_index=True)
        group["target"], group["size"] = name_of(target), len(target)
        before = baseline.loc[group["prompt"]].reset_index(drop=True)
        parts.append(_seen_from(group, before, target, others))
    found = pd.concat(parts, ignore_index=True)
    return found.drop(columns=[name for name in found.columns if name.startswith(("shows:", "logit:"))])


def summarise(seen: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means of `MEASURES` over the groups of `by`, in the order they first appear, and their `replies`."""
    groups = seen.groupby(list(by), sort=False, dropna=False)
    means = groups[[name for name in MEASURES if name in seen.columns]].mean()
    means.insert(0, "replies", groups.size())
    return means.reset_index()


def _seen_from(
    group: pd.DataFrame, before: pd.DataFrame, target: Sequence[str], others: Sequence[str]
) -> pd.DataFrame:
    after_p, before_p = _probabilities(group, target), _probabilities(before, target)
    shows = group[[f"shows:{label}" for label in target]]
    success = np.where(shows.isna().any(axis=1), np.nan, shows.prod(axis=1))
    found = group.assign(
        success=success,
        on_target=success * group["coherent"],
        target_probability=after_p.mean(axis=1),
        target_probability_change=after_p.mean(axis=1) - before_p.mean(axis=1),
        weakest_probability_change=after_p.min(axis=1) - before_p.min(axis=1),
        nll_change=group["nll"] - before["nll"],
        others_probability_change=np.nan,
        others_shown=np.nan,
        others_shown_change=np.nan,
    )
    if others:
        change = _probabilities(group, others).mean(axis=1) - _probabilities(before, others).mean(axis=1)
        names = [f"shows:{label}" for label in others]
        found["others_probability_change"] = change
        found["others_shown"] = group[names].mean(axis=1, skipna=False)
        found["others_shown_change"] = found["others_shown"] - before[names].mean(axis=1, skipna=False)
    return found


def _probabilities(frame: pd.DataFrame, labels: Sequence[str]) -> np.ndarray:
    logits = frame[[f"logit:{label}" for label in labels]].to_numpy(float)
    probabilities: np.ndarray = 1 / (1 + np.exp(-logits))
    return probabilities
