"""The write-up of a suite's fit: how each method reads held-out text, and what the data looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.bench.palette import OKABE_ITO
from ksteer_vllm.bench.suite import EVALUATION, Suite
from ksteer_vllm.data.positions import Window
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.experiments.suite.reading import judge_frame, linear_reads_better, visibility_frame
from ksteer_vllm.fit.activations import Activations
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.fit.visibility import Visibility
from ksteer_vllm.probes.probe import Probe

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["metrics_frame", "projections", "suite_table", "write_up"]

_MARKERS = ("o", "s", "^", "D")
_MOST_POINTS = 2000


def write_up(
    suite: Suite,
    left_out: Mapping[str, str],
    recorded: Mapping[Window, Activations],
    rows: Sequence[LabelledRow],
    layer: int,
    *,
    visible: Sequence[Visibility] = (),
) -> None:
    """Write SUITE/fit.

    Args:
        suite: The suite, with its probes.
        left_out: Methods that were not fitted, and why.
        recorded: Activations, to draw.
        rows: The rows they are of.
        layer: The layer to draw.
        visible: What a bag of words finds of each label in the replies.
    """
    writeup = WriteUp(suite.folder / "fit", f"Fit: {suite.file.task}")
    probes = {**suite.probes, **({EVALUATION: suite.evaluation} if suite.evaluation else {})}
    frame = metrics_frame(probes)
    writeup.heading("Held-out text")
    writeup.text(
        "The steering methods were fitted to one half of the conversations, the evaluation probe (another "
        "seed and width) to the other. Each is tested on rows of its own half that it was not fitted to. "
        "AUROC of a method without a probe is that of its direction; LoReFT and LoReST are tested by the "
        "language model's loss on replies that show the label, in nats per token, without the edit and with."
    )
    writeup.table(frame)
    for name, reason in left_out.items():
        writeup.text(f"Left out: {name}: {reason}")
    if line := linear_reads_better(probes):
        writeup.text(line)
    judging = judge_frame(suite.evaluation)
    if judging is not None:
        writeup.table(
            judging,
            caption="The evaluation probe as a judge: balanced accuracy on held-out replies, with its 95 % "
            "interval; a label whose interval reaches 0.5 is at chance.",
        )
    if visible:
        writeup.heading("Do the replies show their labels?")
        writeup.table(
            visibility_frame(visible),
            caption="What a bag of words tells of each label, cross-fitted by question: balanced accuracy "
            "with its 95 % interval, and AUROC.",
        )
    writeup.heading(f"Activations at layer {layer}")
    for window, activations in recorded.items():
        if layer in activations.streams:
            figure = projections(activations, rows, suite.file.labels, layer)
            caption = (
                f"Residual stream at layer {layer}, mean per row ({window.text}); of the rows that show "
                f"exactly one label at most {_MOST_POINTS}. Left: principal components; right: linear "
                "discriminants, fitted to the other half of these rows."
            )
            if figure is not None:
                writeup.figure("activations", figure, caption)
            else:
                writeup.text("Too few rows show exactly one label to draw them.")
            break
    else:
        writeup.text("No recorded activations are left to draw; `--keep-activations` keeps those of a fit.")
    writeup.results = {
        "methods": {name: probe.metadata.metrics for name, probe in probes.items()},
        "left_out": dict(left_out),
        "visible_labels": {one.label: one.as_json() for one in visible},
        "labels": suite.file.labels,
        "layers": suite.file.layers,
    }
    writeup.write(
        model=suite.file.model,
        data_digest=suite.file.data_digest,
        digests={name: probe.metadata.digest for name, probe in probes.items()},
    )


def metrics_frame(probes: Mapping[str, Probe]) -> pd.DataFrame:
    """A row per probe: its held-out metrics, averaged over labels; missing where there are none."""
    import pandas as pd

    return pd.DataFrame([{"method": name, **_figures(probe)} for name, probe in probes.items()])


def suite_table(suite: Suite) -> Table:
    """`metrics_frame` for the terminal."""
    frame = metrics_frame({**suite.probes, **({EVALUATION: suite.evaluation} if suite.evaluation else {})})
    table = Table(title="held-out text, means over labels", title_justify="left")
    for name in frame.columns:
        table.add_column(name, justify="left" if name in ("method", "family") else "right")
    for _, row in frame.iterrows():
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.3f}"


def _figures(probe: Probe) -> dict[str, Any]:
    metrics = probe.metadata.metrics
    found: dict[str, Any] = {"family": probe.metadata.family}
    for unit, names in (("tokens", ("auroc",)), ("replies", ("auroc", "balanced_accuracy"))):
        for name in names:
            value = metrics.get(unit, {}).get("mean", {}).get(name)
            found[f"{name.replace('_', ' ')} ({unit})"] = _float(value)
    of_labels = metrics.get("language_model", {}).get("labels", {}).values()
    for name in ("loss_unsteered", "loss"):
        values = [one[name] for one in of_labels]
        found[name.replace("_", " ")] = _float(sum(values) / len(values) if values else None)
    return found


def _float(value: float | None) -> float:
    return float("nan") if value is None else value


def projections(
    activations: Activations, rows: Sequence[LabelledRow], labels: Sequence[str], layer: int
) -> Figure | None:
    """Rows as points: their first two principal components and linear discriminants. None: too few rows."""
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    shown = [[k for k, label in enumerate(labels) if label in row.labels] for row in rows]
    single = [index for index in activations.row.unique().tolist() if len(shown[index]) == 1]
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(np.array(single, dtype=np.int64))[:_MOST_POINTS])
    label = np.array([shown[index][0] for index in chosen])
    fitted = rng.permutation(len(chosen)) % 2 == 0
    if len(set(label[fitted])) < 2 or fitted.sum() <= len(labels):
        return None
    x = _row_means(activations, torch.from_numpy(chosen), layer).numpy()
    panels = [("principal component", PCA(2).fit_transform(x), np.ones(len(x), dtype=bool))]
    classes = len(set(label[fitted]))
    if classes > 2:
        discriminants = LinearDiscriminantAnalysis(n_components=2, solver="eigen", shrinkage="auto")
        discriminants.fit(x[fitted], label[fitted])
        panels.append(("linear discriminant", discriminants.transform(x), ~fitted))
    return _scatter(panels, label, labels)


def _scatter(panels: Sequence[tuple[str, Any, Any]], label: Any, labels: Sequence[str]) -> Figure:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), squeeze=False)
    for axis, (name, points, kept) in zip(axes[0], panels, strict=True):
        for index, text in enumerate(labels):
            here = (label == index) & kept
            axis.scatter(
                points[here, 0],
                points[here, 1],
                s=14,
                alpha=0.7,
                linewidths=0,
                color=OKABE_ITO[index % len(OKABE_ITO)],
                marker=_MARKERS[index // len(OKABE_ITO) % len(_MARKERS)],
                label=text,
            )
        axis.set_xlabel(f"{name} 1")
        axis.set_ylabel(f"{name} 2")
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _row_means(activations: Activations, chosen: Tensor, layer: int) -> Tensor:
    """The mean of each row's vectors, [R, d] float64; chosen: row indices, [R] int64 ascending."""
    keep = torch.isin(activations.row, chosen)
    stream = Stream.of(activations.streams[layer]).select(keep)
    place = torch.searchsorted(chosen, activations.row[keep])
    total = torch.zeros(len(chosen), stream.hidden_size, dtype=torch.float64)
    for where, block in stream.blocks():
        total.index_add_(0, place[where], block.double())
    return total / place.bincount(minlength=len(chosen))[:, None]
