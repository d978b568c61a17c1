"""The write-up of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.combinations import size_name
from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.experiments.evaluation import figures
from ksteer_vllm.experiments.evaluation import writeup_parts as parts
from ksteer_vllm.experiments.evaluation.comparison import LEVEL, difference_table, intervals, sentences
from ksteer_vllm.experiments.evaluation.metrics import MEASURES, READING, UNSTEERED, summarise
from ksteer_vllm.experiments.evaluation.outcome import Evaluation
from ksteer_vllm.experiments.evaluation.writeup_parts import records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["headline", "size_table", "write_up"]

CHAMPION = "K-Steering"
PROBABILITIES = ("target_probability_change", "weakest_probability_change", "others_probability_change")


def headline(found: Evaluation) -> dict[str, dict[int, list[str]]]:
    """The sentences that say who wins: comparison -> size -> sentences."""
    return {
        name: {size: _sentences(seen, size)[0] for size in found.plan.sizes}
        for name, seen in (("own strength", found.own), ("equal displacement", found.reached()))
    }


def size_table(found: Evaluation) -> pd.DataFrame:
    """Variant x size at own strengths: how the replies read, strength and displacement."""
    table = summarise(found.own, ["size", "variant"])[["size", "variant", "replies", *READING]]
    moved = found.moved.groupby(["size", "variant"])[["shift", "kl"]].mean().reset_index()
    table = table.merge(moved, on=["size", "variant"], how="left")
    alpha = {(s.name, size): value for s in found.settings for size, value in s.alpha.items()}
    keys = zip(table["variant"], table["size"], strict=True)
    table.insert(2, "alpha", [alpha.get(key, float("nan")) for key in keys])
    return table.sort_values("size", kind="stable", ignore_index=True)


def write_up(found: Evaluation, folder: Path) -> Path:
    """Write results.md, results.json, replies.csv and the figures.

    Args:
        found: The evaluation.
        folder: Where to write.

    Returns:
        The path of results.md.
    """
    writeup = WriteUp(folder, f"Evaluation: {found.source['task']}")
    _summary(writeup, found)
    _own_strength(writeup, found)
    _side_effects(writeup, found)
    parts.equal_displacement(writeup, found)
    parts.steps(writeup, found)
    parts.slopes(writeup, found)
    parts.projections(writeup, found)
    parts.samples(writeup, found)
    parts.how(writeup, found)
    writeup.results["by_target"] = records(summarise(found.own, ["size", "target", "variant"]))
    found.own.to_csv(writeup.folder / "replies.csv", index=False)
    return writeup.write(**found.source)


def _summary(writeup: WriteUp, found: Evaluation) -> None:
    count = len(found.targets)
    writeup.text(
        f"{count} combinations of {_listed(found.plan.sizes)} of {len(found.source['labels'])} labels, "
        f"{found.own['prompt'].nunique()} held-out prompts, {len(found.settings)} variants beside the "
        f"unsteered model; judge: {found.judge}. A reply is on target if it shows every label asked for and "
        "is coherent."
    )
    if found.without:
        writeup.text(f"Left out, in part or whole: {'; '.join(found.without)}.")
        writeup.results["left_out"] = found.without
    writeup.heading("Who wins where")
    writeup.text(
        "Shares of replies on target. Compared are replies to the same prompts and targets; a tie is a "
        f"paired difference whose {LEVEL:.0%} bootstrap interval over prompts includes 0. Intervals are "
        "not corrected for the number of comparisons."
    )
    differences: dict[str, list[dict[str, Any]]] = {}
    tables = []
    for name, seen in (("own strength", found.own), ("equal displacement", found.reached())):
        for size in found.plan.sizes:
            lines, pairs = _sentences(seen, size)
            if lines:
                title = f"**{size_name(size)}, {_AT[name]}.**"
                writeup.text("\n".join([title, "", *(f"- {line}" for line in lines)]))
            tables.append((f"Paired differences, {size_name(size)}, {_AT[name]}.", difference_table(pairs)))
            differences.setdefault(name, []).extend(pair.as_json() for pair in pairs)
    writeup.results["differences"] = differences
    own, matched = intervals(found.own), intervals(found.reached())
    writeup.figure(
        "ranking",
        figures.ranking(own, matched, found.plan.sizes),
        f"Share of replies on target by size of the combination, with {LEVEL:.0%} intervals",
    )
    for caption, table in tables:
        if len(table):
            writeup.table(table, caption=caption)
    writeup.results["on_target"] = {"own strength": records(own), "equal displacement": records(matched)}


def _own_strength(writeup: WriteUp, found: Evaluation) -> None:
    writeup.heading("At each variant's own calibrated strength")
    table = size_table(found)
    writeup.results["by_size"] = records(table)
    shown = table.drop(columns=["kl"]).rename(columns={**MEASURES, "shift": "displacement"})
    writeup.table(
        shown,
        caption="Every variant calibrated to the same coherence budget. Nats per token: of the reply under "
        "the unsteered model, without the request where the labels were asked for in the prompt (prompted). "
        "Displacement: mean ‖x′ − x‖/‖x‖ where it edits. Prompt tokens: what every request pays for.",
    )
    cells = summarise(found.own, ["size", "target", "variant"])
    writeup.figure("composition", figures.composition(cells), "Share of replies on target, targets × methods")
    writeup.table(
        summarise(found.own, ["size", "variant"])[["size", "variant", *PROBABILITIES]].rename(
            columns=MEASURES
        ),
        caption="Change of the evaluation probe's probabilities against the unsteered reply to the same "
        "prompt: mean over the target labels, the weakest of them, and mean over all other labels.",
    )


def _side_effects(writeup: WriteUp, found: Evaluation) -> None:
    writeup.heading("Side effects")
    names = ["others_shown", "others_shown_change", "nll_change"]
    table = summarise(found.own, ["size", "variant"])[["size", "variant", *names]]
    moved = found.moved.groupby(["size", "variant"])[["kl"]].mean().reset_index()
    table = table.merge(moved, on=["size", "variant"], how="left")
    exact = "exact" if found.exact_kl else "a lower bound, from the likeliest tokens"
    writeup.table(
        table.rename(columns={**MEASURES, "kl": "KL, nats"}),
        caption="Other labels shown: mean share over the labels not asked for (with `avoid rest` the edit "
        "moves away from them). KL: of the steered to the unsteered next-token distribution on the unsteered "
        f"replies to {found.plan.texts} neutral prompts, mean over their tokens ({exact}).",
    )


_AT = {"own strength": "each at its own calibrated strength", "equal displacement": "at equal displacement"}


def _sentences(seen: pd.DataFrame, size: int) -> tuple[list[str], list[Any]]:
    there = list(dict.fromkeys(seen[seen["size"] == size]["variant"]))
    champions = [name for name in there if name.startswith(CHAMPION)]
    return sentences(seen, size, champions, [name for name in there if name != UNSTEERED] + [UNSTEERED])


def _listed(sizes: Any) -> str:
    names = [str(size) for size in sizes]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
