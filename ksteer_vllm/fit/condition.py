"""Choosing the threshold of a condition (CAST, arXiv 2409.05907): steer only where a score says so.

The score of a token is what the condition reads from its residual stream: a label's probability (families
`mlp` and `linear`) or the cosine with a label's vector (family `vectors`). Threshold and side are those with
the highest F1, over every cut between two scores: on the validation part, or on training and validation if
these rows are not the ones the probe was fitted on. What is reported is the test part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ksteer_vllm.data.rows import LabelledRow, data_digest, labels_of
from ksteer_vllm.errors import DataError, UsageError, choices
from ksteer_vllm.fit.task import FitTask, LabelledActivations
from ksteer_vllm.probes.fold import fold_linear
from ksteer_vllm.probes.probe import Probe

__all__ = ["Cut", "FittedCondition", "best_cut", "condition_table", "find_condition", "scores_of"]

Side = Literal["above", "below"]


@dataclass(frozen=True)
class Cut:
    """A condition's threshold: it holds where the score is above it, or below it."""

    side: Side
    value: float

    def holds(self, score: Tensor) -> Tensor:
        """[N] bool."""
        return score > self.value if self.side == "above" else score < self.value


@dataclass(frozen=True)
class FittedCondition:
    """The chosen cut and its precision, recall and F1 on the test part.

    metrics: `tokens` and `rows` (a row counts where the condition holds at most of its tokens), and
    `always`: the tokens if there were no condition.
    """

    label: str
    cut: Cut
    metrics: dict[str, dict[str, float]]

    def as_spec(self, probe: str) -> dict[str, Any]:
        """The `condition` of a spec. probe: the name that requests use for the probe."""
        return {"probe": probe, "label": self.label, self.cut.side: self.cut.value}


def find_condition(
    model: str,
    rows: Sequence[LabelledRow],
    probe: Probe,
    label: str,
    *,
    steer: str = "",
    engine_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FittedCondition:
    """Choose the condition on `label` of `probe` that best finds the rows that show `steer`.

    Rows the probe was fitted on are split as they were then, so that validation and test are new to it.

    Args:
        model: A folder, or a name on the hub.
        rows: Labelled text; some rows must show `steer` and some not.
        probe: A probe of family mlp, linear or vectors.
        label: The label whose score the condition tests.
        steer: The label of the rows it is to find; default: `label`.
        engine_options: Further arguments of `vllm.LLM`.
        progress: Where to show how many rows are done.

    Raises:
        UsageError: For a probe that does not fit the model, or reads no score.
        DataError: For rows that cannot be run, or too few of them.
    """
    metadata, steer = probe.metadata, steer or label
    if label not in probe.labels:
        raise UsageError(f"label: {label[:80]!r} is not in the probe; it has: {choices(label, probe.labels)}")
    scores_of(probe, label, torch.zeros(1, metadata.model.hidden_size))  # a family without scores ends here
    labels_of(rows, [steer])
    same_rows = metadata.training.get("data_digest") == data_digest(rows)
    drawn = {name: metadata.training[name] for name in _SPLIT if name in metadata.training}
    task = FitTask.of(
        model,
        rows,
        "condition",
        labels=probe.labels if same_rows else [steer],
        layer=metadata.layer,
        options=drawn if same_rows else {},
        engine_options=engine_options,
        progress=progress,
    )
    for name in ("model_type", "hidden_size", "num_layers"):
        found, expected = getattr(task.identity, name), getattr(metadata.model, name)
        if found != expected:
            raise UsageError(f"{model}: {name} is {found}, the probe was fitted where it is {expected}")
    parts, tokens = task.parts, task.activations()
    shows = torch.tensor([steer in row.labels for row in rows])
    new_to_it = parts["validation"] if same_rows else parts["train"] + parts["validation"]
    choice, test = tokens.of_rows(new_to_it), tokens.of_rows(parts["test"])
    for part in (choice, test):
        if shows[part.row].all() or not shows[part.row].any():
            raise DataError(f"labels: validation and test need rows with {steer!r} and rows without")
    cut = best_cut(_scores(probe, label, choice), shows[choice.row])
    return FittedCondition(label, cut, _metrics(cut, _scores(probe, label, test), test, shows))


_SPLIT = ("validation_share", "test_share", "seed")


def scores_of(probe: Probe, label: str, x: Tensor) -> Tensor:
    """What a condition reads from vectors.

    Args:
        probe: Of family mlp or linear (probabilities), or vectors (cosines).
        label: One of its labels.
        x: [N, d], the residual stream at the probe's layer.

    Returns:
        [N] float64.

    Raises:
        UsageError: For a probe of another family.
    """
    index, family = probe.labels.index(label), probe.metadata.family
    x, tensors = x.double(), probe.at(probe.metadata.layer)
    if family == "mlp":
        return torch.sigmoid(probe.logits(x)[:, index])
    if family == "linear":
        weight, bias = fold_linear(tensors)
        return torch.sigmoid(x @ weight[index] + bias[index])
    if family == "vectors":
        return cosine_similarity(x, tensors["vectors"][index][None], dim=1)
    raise UsageError(f"condition: family {family!r} has no score; mlp, linear and vectors have one")


def _scores(probe: Probe, label: str, tokens: LabelledActivations) -> Tensor:
    return tokens.stream.map(lambda x: scores_of(probe, label, x))


def best_cut(score: Tensor, shown: Tensor) -> Cut:
    """The cut and side with the highest F1 for `shown`; score [N], shown [N] bool.

    Cuts lie midway between neighbouring scores. Of equally good ones, the widest gap is taken. Raises
    DataError if all scores are equal.
    """
    order = torch.argsort(score.double())
    ordered, truth = score.double()[order], shown[order].double()
    gaps = ordered.diff()
    if not (gaps > 0).any():
        raise DataError("condition: all tokens have the same score")
    below = truth.cumsum(0)[:-1]  # shown among those below each cut
    count = torch.arange(1, len(ordered), dtype=torch.float64)
    total = truth.sum()
    f1 = {
        "below": 2 * below / (count + total),
        "above": 2 * (total - below) / (len(ordered) - count + total),
    }
    found: list[tuple[float, float, Cut]] = []
    sides: tuple[Side, ...] = ("above", "below")
    for side in sides:
        usable = torch.where(gaps > 0, f1[side], -1.0)
        ties = (usable == usable.max()).nonzero()[:, 0]
        at = int(ties[gaps[ties].argmax()])
        value = _between(ordered[at].item(), ordered[at + 1].item())
        found.append((usable[at].item(), gaps[at].item(), Cut(side, value)))
    return max(found, key=lambda one: one[:2])[2]


def _between(low: float, high: float) -> float:
    """About midway, with few digits where the gap allows it."""
    middle = (low + high) / 2
    short = float(f"{middle:.4g}")
    return short if low < short < high else middle


def condition_table(condition: FittedCondition) -> Table:
    """Precision, recall and F1 on the test part."""
    table = Table(title="held-out (test part)", title_justify="left")
    table.add_column("of")
    for name in ("precision", "recall", "f1"):
        table.add_column(name, justify="right")
    for unit, values in condition.metrics.items():
        name = "tokens, were all steered" if unit == "always" else unit
        table.add_row(name, *(f"{values[name]:.3f}" for name in ("precision", "recall", "f1")))
    return table


def _metrics(
    cut: Cut, score: Tensor, tokens: LabelledActivations, shows: Tensor
) -> dict[str, dict[str, float]]:
    holds = cut.holds(score)
    rows, counts = tokens.row.unique(return_counts=True)
    most = torch.bincount(tokens.row, holds.double())[rows] > counts / 2
    return {
        "tokens": _agreement(holds, shows[tokens.row]),
        "rows": _agreement(most, shows[rows]),
        "always": _agreement(torch.ones_like(holds), shows[tokens.row]),
    }


def _agreement(called: Tensor, truth: Tensor) -> dict[str, float]:
    """Precision (0 if nothing is called), recall and F1; both [N] bool."""
    right = (called & truth).sum().item()
    return {
        "precision": right / max(called.sum().item(), 1),
        "recall": right / max(truth.sum().item(), 1),
        "f1": 2 * right / (called.sum().item() + truth.sum().item()),
    }
