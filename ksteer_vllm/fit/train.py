"""Fitting the probe: a multi-label MLP on residual-stream vectors, and the CAA vector of every label."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ksteer_vllm.data.rows import LabelledRow, row_name
from ksteer_vllm.data.split import check_labels, split_conversations
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.heldout import evaluate, evaluate_ranking
from ksteer_vllm.fit.metric import MetricStatistics, metric_statistics
from ksteer_vllm.fit.plans import FitPlan
from ksteer_vllm.fit.statistics import activation_scale, label_vectors, standardisation
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.models import ModelIdentity
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe

__all__ = ["POOL_BYTES", "FittedNetwork", "fit_probe", "train_network"]

POOL_BYTES = 1 << 29
"""Training vectors are shuffled within pools of at most this size, the pools among each other."""


@dataclass(frozen=True)
class FittedNetwork:
    """The best network, the loss it had on the validation part, and how long that took; seed: its own."""

    network: nn.Sequential
    loss: float
    best_epoch: int
    epochs: int
    seed: int = 0


def fit_probe(
    x: Tensor | Stream,
    targets: Tensor,
    row: Tensor,
    conversation: Sequence[str],
    *,
    labels: Sequence[str],
    layer: int,
    model: ModelIdentity,
    plan: FitPlan,
    provenance: dict[str, Any] | None = None,
    progress: Progress | None = None,
    rows: Sequence[LabelledRow] = (),
    grid: Sequence[Mapping[str, float]] = ({},),
) -> Probe:
    """Fit a probe on one layer's residual stream; the same inputs give the same probe.

    Training, validation and test never share a conversation; label vectors and input statistics come from
    the training part.

    Args:
        x: The vectors, [N, d] float32.
        targets: [rows, K], 1 where a row shows a label.
        row: [N] int64, the row each vector comes from.
        conversation: For each row, the conversation it stays with when the rows are split.
        labels: K names.
        layer: The decoder block, from 0, whose output the vectors are.
        model: The model they were recorded from.
        plan: Hyperparameters.
        provenance: What `probe.json` is to say of the data.
        progress: Where to show the loss.
        rows: The rows themselves, so that messages can name them; empty: they are numbered.
        grid: Changes to the plan to try; the one with the best validation loss is kept.

    Returns:
        The probe with its held-out metrics.

    Raises:
        DataError: For a label that too few rows show or lack, for values that are not finite and, with
            cross-entropy, for a row that does not show exactly one label.
    """
    stream = Stream.of(x)
    if not all(torch.isfinite(block).all() for _, block in stream.blocks()):
        raise DataError("the residual stream is not finite")
    if plan.loss == "cross-entropy":
        _check_one_label(targets, rows)
    check_labels(targets, labels, rows=rows)
    parts = split_conversations(conversation, targets, plan.validation_share, plan.test_share, plan.seed)
    token_targets = targets.float()[row]
    of = {name: torch.isin(row, torch.tensor(rows)) for name, rows in parts.items()}
    train_x, train_y = stream.select(of["train"]), token_targets[of["train"]]
    valid_x, valid_y = stream.select(of["validation"]), token_targets[of["validation"]]
    test_x, test_y, test_row = stream.select(of["test"]), token_targets[of["test"]], row[of["test"]]
    mean32, std32 = standardisation(train_x)
    scale = activation_scale(train_x)
    noise = None
    if not plan.standardise:
        noise, mean32, std32 = std32, torch.zeros_like(mean32), torch.ones_like(std32)
    vectors = label_vectors(train_x, train_y)
    lengths = (
        metric_statistics(train_x, mean32, std32, rows=len(parts["train"])) if plan.standardise else None
    )

    def probe_of(network: nn.Sequential) -> Probe:
        metadata = ProbeMetadata(
            labels=tuple(labels),
            layer=layer,
            model=model,
            activation_scale={layer: scale} if scale else {},
            metric_scale=lengths.at(layer) if lengths is not None else {},
        )
        return _probe(network, metadata, mean32, std32, vectors, lengths)

    def trained(changes: Mapping[str, float]) -> FittedNetwork:
        return train_network(
            train_x.standardised(mean32, std32),
            train_y,
            valid_x.standardised(mean32, std32),
            valid_y,
            plan.model_copy(update=dict(changes)),
            progress,
            deviation=noise,
        )

    tried = [trained(changes) for changes in grid]
    chosen = min(range(len(grid)), key=lambda index: tried[index].loss)
    fitted = [tried[chosen]]
    fitted += [trained({**grid[chosen], "seed": plan.seed + index}) for index in range(1, plan.seeds)]
    metrics = [
        _metrics(test_x.map(probe_of(one.network).logits), test_y, test_row, labels, plan) for one in fitted
    ]
    best = min(range(plan.seeds), key=lambda index: fitted[index].loss)
    training = {
        **(provenance or {}),
        **plan.model_copy(update=dict(grid[chosen])).model_dump(mode="json"),
        "split": {name: {"rows": len(rows), "tokens": int(of[name].sum())} for name, rows in parts.items()},
        "best_epoch": fitted[best].best_epoch,
        "epochs_run": fitted[best].epochs,
        "validation_loss": fitted[best].loss,
    }
    if lengths is not None:
        training["metric"] = dict(lengths.training)
    if len(grid) > 1:
        training["grid"] = [
            {**changes, "validation_loss": one.loss, "epochs_run": one.epochs}
            for changes, one in zip(grid, tried, strict=True)
        ]
    if plan.seeds > 1:
        training["by_seed"] = _by_seed(fitted, metrics)
    return probe_of(fitted[best].network).with_metadata(training=training, metrics=metrics[best])


def _check_one_label(targets: Tensor, rows: Sequence[LabelledRow]) -> None:
    for index, count in enumerate(targets.sum(1).long().tolist()):
        if count != 1:
            name = row_name(rows[index], index) if rows else f"row {index + 1}"
            raise DataError(
                f"{name}: shows {count or 'no'} labels; cross-entropy needs exactly one: take --loss bce"
            )


def _metrics(
    logits: Tensor, targets: Tensor, row: Tensor, labels: Sequence[str], plan: FitPlan
) -> dict[str, Any]:
    """Held-out metrics; with cross-entropy logits only rank; `top_label`: how often the best is right."""
    if plan.loss == "bce":
        return evaluate(logits, targets, row, labels)
    right = (logits.argmax(1) == targets.argmax(1)).double().mean().item()
    return {**evaluate_ranking(logits, targets, row, labels), "top_label": right}


def _by_seed(fitted: Sequence[FittedNetwork], metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every network's seed, validation loss and held-out AUROC over tokens; of that, mean and deviation."""
    auroc = [found["tokens"]["mean"]["auroc"] for found in metrics]
    values = torch.tensor(auroc, dtype=torch.float64)
    return {
        "seeds": [one.seed for one in fitted],
        "validation_loss": [one.loss for one in fitted],
        "auroc": auroc,
        "auroc_mean": values.mean().item(),
        "auroc_deviation": values.std().item(),
    }


def _probe(
    network: nn.Sequential,
    metadata: ProbeMetadata,
    mean: Tensor,
    std: Tensor,
    vectors: Tensor,
    lengths: MetricStatistics | None,
) -> Probe:
    first, second, third = (module for module in network if isinstance(module, nn.Linear))
    tensors = {
        "w1": first.weight,
        "b1": first.bias,
        "w2": second.weight,
        "b2": second.bias,
        "w3": third.weight,
        "b3": third.bias,
        "input_mean": mean,
        "input_std": std,
        "label_vectors": vectors,
    }
    if lengths is not None:
        tensors |= lengths.tensors(first.weight)
    return Probe(metadata, {name: tensor.detach() for name, tensor in tensors.items()})


def _network(hidden_size: int, width: int, num_labels: int, generator: torch.Generator) -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(hidden_size, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_labels),
    )
    for module in network:
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for parameter in (module.weight, module.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network


def train_network(
    x: Tensor | Stream,
    targets: Tensor,
    valid_x: Tensor | Stream,
    valid_targets: Tensor,
    plan: FitPlan,
    progress: Progress | None = None,
    *,
    deviation: Tensor | None = None,
) -> FittedNetwork:
    """AdamW on minibatches; keeps the weights of the epoch with the lowest validation loss, see `FitPlan`.

    Args:
        x: Training vectors, [N, d].
        targets: [N, K] of 0 and 1.
        valid_x, valid_targets: The same of the validation part.
        plan: Hyperparameters.
        progress: Where to show the loss.
        deviation: [d], the standard deviation of every coordinate of x, the unit of the noise; None: 1, as x
            is standardised.

    Raises:
        DataError: If the loss is not finite.
    """
    train, valid = Stream.of(x), Stream.of(valid_x)
    generator = torch.Generator().manual_seed(plan.seed)
    network = _network(train.hidden_size, plan.width, targets.shape[1], generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    batches = _Batches(train, targets, plan.batch_size or min(512, max(32, len(train) // 16)), generator)
    task = progress.add_task("fitting the probe", total=plan.epochs) if progress else None
    best_loss, best_epoch, best = math.inf, 0, network.state_dict()
    epoch = 0
    for epoch in range(1, plan.epochs + 1):
        for batch, wanted in batches:
            noisy = batch
            if plan.noise:
                drawn = torch.randn(batch.shape, generator=generator)
                noisy = batch + plan.noise * (drawn if deviation is None else drawn * deviation)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(_loss(network(noisy), wanted, plan))
            optimizer.step()
        with torch.no_grad():
            validation = _mean_loss(network, valid, valid_targets, plan)
        if progress is not None and task is not None:
            progress.update(task, completed=epoch, description=f"fitting the probe (loss {validation:.4f})")
        if validation < best_loss or not plan.early_stopping:
            best_loss, best_epoch = validation, epoch
            best = {name: value.clone() for name, value in network.state_dict().items()}
        elif epoch - best_epoch >= plan.patience:
            break
    if not math.isfinite(best_loss):
        raise DataError("the fit diverged: the validation loss is not finite; try a lower learning rate")
    if progress is not None and task is not None:
        progress.update(task, completed=plan.epochs)
    network.load_state_dict(best)
    return FittedNetwork(network, best_loss, best_epoch, epoch, plan.seed)


class _Batches:
    """Every training vector once per pass, in random order; at most a pool of them is in memory."""

    def __init__(self, x: Stream, targets: Tensor, size: int, generator: torch.Generator) -> None:
        self.x, self.targets, self.size, self.generator = x, targets, size, generator
        self.pools = torch.arange(len(x)).split(max(size, POOL_BYTES // (4 * x.hidden_size)))
        self.whole = x.tensor() if len(self.pools) == 1 else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = [0]
        if len(self.pools) > 1:
            order = torch.randperm(len(self.pools), generator=self.generator).tolist()
        for number in order:
            pool = self.pools[number]
            x, targets = self.x.take(pool) if self.whole is None else self.whole, self.targets[pool]
            for chosen in torch.randperm(len(pool), generator=self.generator).split(self.size):
                yield x[chosen], targets[chosen]


def _loss(logits: Tensor, targets: Tensor, plan: FitPlan) -> Tensor:
    loss = binary_cross_entropy_with_logits if plan.loss == "bce" else cross_entropy
    return loss(logits, targets)


def _mean_loss(network: nn.Sequential, x: Stream, targets: Tensor, plan: FitPlan) -> float:
    total = 0.0
    for where, block in x.blocks():
        total += _loss(network(block), targets[where], plan).item() * len(block)
    return total / len(x)
