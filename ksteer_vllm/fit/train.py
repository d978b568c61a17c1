"""Fitting the probe: a multi-label MLP on residual-stream vectors, and the CAA vector of every label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ksteer_vllm.fit.data import DataError
from ksteer_vllm.fit.report import evaluate
from ksteer_vllm.fit.split import SplitPlan, check_labels, split_conversations
from ksteer_vllm.fit.task import activation_scale
from ksteer_vllm.probe import ModelIdentity, Probe, ProbeMetadata

__all__ = ["FitPlan", "check_directions", "fit_probe", "label_means", "label_vectors", "standardisation"]


class FitPlan(SplitPlan):
    """Hyperparameters of one fit."""

    width: Annotated[int, Field(ge=1, le=4096, description="both hidden layers")] = 256
    epochs: Annotated[int, Field(ge=1, description="at most; early stopping may end sooner")] = 30
    patience: Annotated[int, Field(ge=1, description="epochs without a better validation loss")] = 4
    batch_size: Annotated[
        int,
        Field(ge=1, description="tokens; fewer (32 at least) where that leaves an epoch under 16 batches"),
    ] = 512
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    noise: Annotated[float, Field(ge=0, description="Gaussian input noise, in input deviations")] = 0.0


@dataclass(frozen=True)
class _Fitted:
    """The best network, the loss it had on the validation part, and how long that took."""

    network: nn.Sequential
    loss: float
    best_epoch: int
    epochs: int


def fit_probe(
    x: Tensor,
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
) -> Probe:
    """Fit a probe on one layer's residual stream; the same inputs give the same probe.

    x: [N, d] float32. targets: [rows, K], 1 where a row shows a label. row: [N] int64, each vector's row.
    conversation: per row, what it must stay together with when the rows are split. Training, validation
    and test never share a conversation; label vectors and input statistics come from the training part.
    Raises DataError for a label without enough positive or negative rows and for values that are not finite.
    """
    if not torch.isfinite(x).all():
        raise DataError("the residual stream is not finite")
    check_labels(targets, labels)
    parts = split_conversations(conversation, targets, plan.validation_share, plan.test_share, plan.seed)
    token_targets = targets.float()[row]
    of = {name: torch.isin(row, torch.tensor(rows)) for name, rows in parts.items()}
    train_x, train_y = x[of["train"]].float(), token_targets[of["train"]]
    mean32, std32 = standardisation(train_x)
    scale = activation_scale(train_x)
    fitted = _train(
        (train_x - mean32) / std32,
        train_y,
        (x[of["validation"]].float() - mean32) / std32,
        token_targets[of["validation"]],
        plan,
        progress,
    )
    first, second, third = (module for module in fitted.network if isinstance(module, nn.Linear))
    probe = Probe(
        metadata=ProbeMetadata(
            labels=tuple(labels),
            layer=layer,
            model=model,
            activation_scale={layer: scale} if scale else {},
        ),
        w1=first.weight.detach(),
        b1=first.bias.detach(),
        w2=second.weight.detach(),
        b2=second.bias.detach(),
        w3=third.weight.detach(),
        b3=third.bias.detach(),
        input_mean=mean32,
        input_std=std32,
        label_vectors=label_vectors(train_x, train_y),
    )
    test = of["test"]
    metrics = evaluate(probe.logits(x[test].float()), token_targets[test], row[test], labels)
    training = {
        **(provenance or {}),
        **plan.model_dump(mode="json"),
        "split": {name: {"rows": len(rows), "tokens": int(of[name].sum())} for name, rows in parts.items()},
        "best_epoch": fitted.best_epoch,
        "epochs_run": fitted.epochs,
        "validation_loss": fitted.loss,
    }
    return probe.with_metadata(training=training, metrics=metrics)


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (at least 1e-6) of every coordinate, [d] float32 each; x [N, d]."""
    x64 = x.double()
    mean = x64.mean(0)
    std = (x64 - mean).pow(2).mean(0).sqrt().clamp_min(1e-6)
    return mean.float(), std.float()


def label_means(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Per label the mean with it and the mean without; x [N, d], targets [N, K] -> [K, d] float64, twice."""
    x64, shown = x.double(), targets.double()
    positive = shown.T @ x64 / shown.sum(0)[:, None]
    negative = (1 - shown).T @ x64 / (1 - shown).sum(0)[:, None]
    return positive, negative


def label_vectors(x: Tensor, targets: Tensor) -> Tensor:
    """CAA: per label mean of positives minus mean of negatives; x [N, d], targets [N, K] -> [K, d]."""
    positive, negative = label_means(x, targets)
    return (positive - negative).float()


def check_directions(vectors: Tensor, labels: Sequence[str]) -> None:
    """Raise DataError for a label whose mean difference is zero; vectors [K, d]."""
    for label, length in zip(labels, vectors.norm(dim=1).tolist(), strict=True):
        if length == 0:
            raise DataError(f"labels: the mean with {label!r} equals the mean without; there is no direction")


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


def _train(
    x: Tensor,
    targets: Tensor,
    valid_x: Tensor,
    valid_targets: Tensor,
    plan: FitPlan,
    progress: Progress | None,
) -> _Fitted:
    """AdamW on minibatches; keeps the weights of the epoch with the lowest validation loss."""
    generator = torch.Generator().manual_seed(plan.seed)
    network = _network(x.shape[1], plan.width, targets.shape[1], generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    batch_size = min(plan.batch_size, max(32, len(x) // 16))
    task = progress.add_task("fitting the probe", total=plan.epochs) if progress else None
    best_loss, best_epoch, best = math.inf, 0, network.state_dict()
    epoch = 0
    for epoch in range(1, plan.epochs + 1):
        for chosen in torch.randperm(len(x), generator=generator).split(batch_size):
            batch = x[chosen]
            if plan.noise:
                batch = batch + plan.noise * torch.randn(batch.shape, generator=generator)
            loss = binary_cross_entropy_with_logits(network(batch), targets[chosen])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            validation = binary_cross_entropy_with_logits(network(valid_x), valid_targets).item()
        if progress is not None and task is not None:
            progress.update(task, completed=epoch, description=f"fitting the probe (loss {validation:.4f})")
        if validation < best_loss:
            best_loss, best_epoch = validation, epoch
            best = {name: value.clone() for name, value in network.state_dict().items()}
        elif epoch - best_epoch >= plan.patience:
            break
    if not math.isfinite(best_loss):
        raise DataError("the fit diverged: the validation loss is not finite; try a lower learning rate")
    if progress is not None and task is not None:
        progress.update(task, completed=plan.epochs)
    network.load_state_dict(best)
    return _Fitted(network, best_loss, best_epoch, epoch)
