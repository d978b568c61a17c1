"""The write-up of a layer sweep, and its table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ksteer_vllm.bench.coherence import RULE as COHERENCE
from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.bench.unsteered import UNSTEERED_REPLIES
from ksteer_vllm.experiments.layers.plan import LayerPlan
from ksteer_vllm.experiments.layers.sweep import CAA, K_STEERING, RULE, STEPS, LayerSweep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["by_layer", "layer_table", "write_up"]

_STYLES: dict[str, dict[str, Any]] = {
    "mlp": {"color": "#0072B2", "marker": "o"},
    "linear": {"color": "#E69F00", "marker": "s"},
    "caa": {"color": "#009E73", "marker": "^"},
    K_STEERING: {"color": "#0072B2", "marker": "o"},
    CAA: {"color": "#009E73", "marker": "^"},
}
_READERS = {"mlp": "MLP probe", "linear": "linear probe", "caa": "CAA direction"}


def by_layer(sweep: LayerSweep) -> pd.DataFrame:
    """A row per layer: held-out AUROC of each reader; per method the best strength and what it reaches."""
    frame = sweep.reading.pivot_table(index="layer", columns="method", values="auroc")[list(_READERS)]
    frame.columns = [f"AUROC, {_READERS[name]}" for name in frame.columns]
    for method in (K_STEERING, CAA):
        best = _best(sweep, method).set_index("layer")
        frame[f"{method}: strength"] = best["strength"]
        frame[f"{method}: on target"] = best["on_target"]
        frame[f"{method}: coherent"] = best["coherent"]
    frame = frame.reset_index()
    frame.insert(1, "depth", [f"{100 * (layer + 1) / sweep.num_layers:.0f} %" for layer in frame["layer"]])
    frame["note"] = [_note(sweep, layer) for layer in frame["layer"]]
    return frame


def layer_table(sweep: LayerSweep) -> Table:
    """`by_layer` for the terminal, shorter."""
    frame = by_layer(sweep)
    title = f"AUROC of each reader; share of replies on target at the best strength (judge: {sweep.judge})"
    table = Table(title=title, title_justify="left")
    read = [f"AUROC, {name}" for name in _READERS.values()]
    for name in ("layer", "depth", *_READERS.values(), K_STEERING, CAA):
        table.add_column(name, justify="right")
    table.add_column("")
    for _, row in frame.iterrows():
        steered = (
            f"{row[f'{method}: on target']:.3f} at {row[f'{method}: strength']:g}"
            for method in (K_STEERING, CAA)
        )
        table.add_row(
            str(row["layer"]), row["depth"], *(f"{row[name]:.3f}" for name in read), *steered, row["note"]
        )
    return table


def write_up(sweep: LayerSweep, plan: LayerPlan, folder: str | Path, **source: Any) -> Path:
    """Write results.md, results.json and the figure.

    Args:
        sweep: What was found.
        plan: What was tried.
        folder: Where to write.
        source: Further provenance, such as model and data.

    Returns:
        The path of results.md.
    """
    writeup = WriteUp(folder, "Which layer to steer at")
    writeup.text(
        f"Recommended: **layer {sweep.layer}**; the rule of 60 % of the depth gives layer {sweep.by_depth}. "
        f"Rule: {RULE}."
    )
    writeup.table(by_layer(sweep))
    writeup.figure(
        "layers",
        _figure(sweep),
        "Left: how well each layer is read, token by token, on held-out replies. Right: share of replies on "
        "target, at each layer's best strength. Dashed: the recommended layer; dotted: 60 % of the depth.",
    )
    writeup.heading("What was done")
    writeup.text(
        f"AUROC: mean over labels, of single tokens of held-out replies. Steering: "
        f"single labels, away from the others, one layer at a time, {plan.prompts} calibration prompts per "
        f"label, the same seeds everywhere; lengths {', '.join(map(str, plan.strengths))} in units of "
        f"the layer's mean |x - mean(x)|, in {STEPS} steps for K-Steering and one for CAA. On target: judge "
        f"{sweep.judge!r} finds the label, and the reply is coherent: {COHERENCE}. Of at "
        f"least {UNSTEERED_REPLIES} unsteered replies to the same prompts, {sweep.unsteered:.0%} are."
    )
    writeup.heading("All strengths")
    writeup.table(sweep.steering)
    writeup.results = {
        "recommended": sweep.layer,
        "rule": RULE,
        "by_depth": sweep.by_depth,
        "reading": sweep.reading.to_dict("records"),
        "steering": sweep.steering.to_dict("records"),
        "coherence": sweep.rule.model_dump(),
        "judge": sweep.judge,
    }
    return writeup.write(**source)


def _best(sweep: LayerSweep, method: str) -> pd.DataFrame:
    own = sweep.steering[sweep.steering["method"] == method]
    return own.loc[own.groupby("layer")["on_target"].idxmax()]


def _note(sweep: LayerSweep, layer: int) -> str:
    notes = {"recommended": sweep.layer, "60 % rule": sweep.by_depth}
    return ", ".join(name for name, which in notes.items() if which == layer)


def _figure(sweep: LayerSweep) -> Figure:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for name, text in _READERS.items():
        found = sweep.reading[sweep.reading["method"] == name]
        left.plot(found["layer"], found["auroc"], label=text, **_STYLES[name])
    for method in (K_STEERING, CAA):
        best = _best(sweep, method)
        right.plot(best["layer"], best["on_target"], label=f"{method}, on target", **_STYLES[method])
        faint = {**_STYLES[method], "marker": None, "linestyle": ":"}
        right.plot(best["layer"], best["coherent"], label=f"{method}, coherent", **faint)
    left.set_ylabel("AUROC of held-out tokens")
    right.set_ylabel("share of replies")
    right.set_ylim(-0.03, 1.03)
    for axis in (left, right):
        axis.axvline(sweep.layer, color="black", linestyle="--", linewidth=0.8)
        axis.axvline(sweep.by_depth, color="black", linestyle=":", linewidth=0.8)
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure
