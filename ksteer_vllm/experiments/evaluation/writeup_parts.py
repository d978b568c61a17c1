"""Sections of the write-up that follow the comparison at own strengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.coherence import RULE
from ksteer_vllm.bench.combinations import name_of, size_name
from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.experiments.evaluation import figures
from ksteer_vllm.experiments.evaluation.comparison import intervals
from ksteer_vllm.experiments.evaluation.metrics import MEASURES, READING, UNSTEERED, summarise
from ksteer_vllm.experiments.evaluation.outcome import STEPS_OF, Evaluation, Matched
from ksteer_vllm.experiments.evaluation.steerability import steerability

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["equal_displacement", "how", "projections", "records", "samples", "slopes", "steps"]


def equal_displacement(writeup: WriteUp, found: Evaluation) -> None:
    writeup.heading("At equal displacement")
    table = summarise(found.matched, ["size", "variant"])[["size", "variant", "replies", *READING[:4]]]
    table = table.merge(_strengths(found.strengths), on=["variant", "size"], how="left")
    writeup.results["equal_displacement"] = records(table)
    table["reached"] = _words(table["reached"])
    writeup.table(
        table.rename(columns=MEASURES),
        caption="Strengths at which all variants move the stream equally far, by the median of their "
        f"displacements at own strength ({_by_size(found.strengths)}). "
        "Reached: within 3 %; a variant that cannot move that far, or that little, is left out of the "
        "sentences above.",
    )


def steps(writeup: WriteUp, found: Evaluation) -> None:
    if found.steps is None:
        return
    import pandas as pd

    writeup.heading("How many gradient steps")
    table = intervals(found.steps)
    curve = table[table["variant"] != UNSTEERED].merge(
        _strengths(found.step_strengths), on=["variant", "size"], how="left"
    )
    curve["steps"] = [int(name.split()[0]) for name in curve["variant"]]
    writeup.results["steps"] = records(curve)
    references = intervals(found.reached())
    reached = curve[curve["reached"]]
    if len(reached):
        writeup.figure(
            "steps",
            figures.steps(reached, references[references["variant"].isin([UNSTEERED, "CAA"])]),
            f"K-Steering by number of steps, at the displacement of {STEPS_OF}; dashed: unsteered replies, "
            "and CAA at the common displacement",
        )
    plain = table[table["variant"] == UNSTEERED].assign(steps=UNSTEERED)
    shown = pd.concat([plain, curve], ignore_index=True).sort_values("size", kind="stable")
    shown = shown[["size", "steps", "mean", "low", "high", "alpha", "displacement", "reached"]]
    missed = [f"{m.variant} at {size_name(m.size)}" for m in found.step_strengths if not m.reached]
    writeup.table(
        shown.assign(reached=_words(shown["reached"])),
        caption=f"Share of replies on target. Displacement wanted: {_by_size(found.step_strengths)}. "
        + (
            f"Not reached, and left out of the figure: {', '.join(missed)}." if missed else "All are reached."
        ),
    )


def slopes(writeup: WriteUp, found: Evaluation) -> None:
    rows = found.propensities
    if rows.empty or rows["propensity"].isna().all():
        return
    writeup.heading("Steerability")
    table = steerability(rows)
    by_variant = table.groupby("variant", sort=False)[["slope", "negative_share"]].mean().reset_index()
    curves = rows.groupby(["variant", "multiplier"], sort=False)["propensity"].mean().reset_index()
    curves = curves.sort_values("multiplier", kind="stable")
    writeup.figure(
        "steerability", figures.slopes(curves), "Propensity by multiplier, mean over labels and prompts"
    )
    writeup.table(
        by_variant.rename(columns={"slope": "mean slope", "negative_share": "share negative"}),
        caption="Single labels, as Tan et al. (arXiv 2407.12404) define it: per example the least-squares "
        "slope of propensity over multipliers −1 to 1 of the calibrated strength, and the share of examples "
        "with a negative slope. Propensity: the evaluation probe's mean logit of the target. Multiplier 0 is "
        "the unsteered reply.",
    )
    writeup.results["steerability"] = records(table)


def projections(writeup: WriteUp, found: Evaluation) -> None:
    if found.points is None:
        return
    writeup.heading("Before and after")
    writeup.figure(
        "projections",
        figures.streams(found.points, UNSTEERED),
        "Replies as the unsteered model reads them: the mean residual stream of each, before (grey) and "
        "after steering towards single labels",
    )


def samples(writeup: WriteUp, found: Evaluation) -> None:
    writeup.heading("The first prompt")
    writeup.text(f"> {found.samples[0].job.question}")
    lines = []
    for target in [next(t for t in found.targets if len(t) == size) for size in found.plan.sizes]:
        lines += [
            f"- {name_of(target)}, {reply.job.tags['variant']}: {reply.text}"
            for reply in found.samples
            if tuple(reply.job.tags.get("target", ())) == target
        ]
    plain = next(r.text for r in found.samples if r.job.tags["variant"] == UNSTEERED)
    writeup.text("\n".join([f"- unsteered: {plain}", *lines]))


def how(writeup: WriteUp, found: Evaluation) -> None:
    writeup.heading("How it was measured")
    rule = found.rule
    away = "away from all other labels" if found.plan.avoid == "rest" else "away from none"
    thresholds = (
        f"perplexity at most {rule.max_perplexity:.3g}, repetition at most {rule.max_repetition:.2f}, "
        f"{rule.min_length:.0f} to {rule.max_length:.0f} tokens"
    )
    writeup.text(
        f"Specs name the target labels, and steer {away} where the method takes such. Replies to one prompt "
        "share a sampling seed. Coherent: by the judge's word, where it gives one, and by this rule, the "
        f"same for every variant: {RULE}. Here: {thresholds}; "
        f"{found.unsteered_coherent():.2f} of the unsteered replies are coherent. The random direction has "
        "the norms of CAA's vectors and runs at CAA's strength. The evaluation probe was fitted to "
        f"conversations no method saw. Replies without a usable verdict: {found.not_judged}."
    )


def _strengths(found: Sequence[Matched]) -> pd.DataFrame:
    import pandas as pd

    rows = [(m.variant, m.size, m.alpha, m.shift, m.reached) for m in found]
    return pd.DataFrame(rows, columns=["variant", "size", "alpha", "displacement", "reached"])


def _words(reached: pd.Series) -> Sequence[str]:
    """What a table shows of truth values, some of them missing."""
    return reached.map({True: "yes", False: "no"}).fillna("–").tolist()


def _by_size(found: Sequence[Matched]) -> str:
    """The displacements wanted."""
    wanted = {m.size: m.wanted for m in found}
    return ", ".join(f"{size_name(size)}: {shift:.3f}" for size, shift in wanted.items())


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Plain JSON: missing numbers are None."""
    records: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=6))
    return records
