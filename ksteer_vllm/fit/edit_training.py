"""Fitting one edit per label through the frozen language model; what LoReFT and LoReST share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from ksteer_vllm.data.positions import REPLY
from ksteer_vllm.data.rows import row_name
from ksteer_vllm.errors import DataError, UsageError
from ksteer_vllm.fit.language_model import FrozenModel, Tokens
from ksteer_vllm.fit.plans import EditPlan
from ksteer_vllm.fit.statistics import activation_scale
from ksteer_vllm.fit.task import FitTask

__all__ = [
    "EditTraining",
    "Editable",
    "Fitted",
    "TrainableEdit",
    "fit_edits",
    "orthonormal_rows",
    "train_edit",
]

_SCALE_ROWS = 64
_POOL = 8


class TrainableEdit(nn.Module):
    """What is trained: forward takes x [n, d] and gives x' [n, d].

    In training mode it may be a relaxation of what is saved; in evaluation mode it is what is saved.
    """

    def begin_epoch(self, done: float) -> None:
        """Called before every epoch with the share of epochs done, from 0; for annealing."""

    def next_phase(self) -> int:
        """Called when a phase of the training ends: the number of steps of the next one, 0 to stop."""
        return 0


E = TypeVar("E", bound=TrainableEdit)
Row = TypeVar("Row", bound=Sized)
Row_contra = TypeVar("Row_contra", bound=Sized, contravariant=True)


class Editable(Protocol[Row_contra]):
    """A frozen model that an edit is fitted through: `FrozenModel`, or anything else with these losses."""

    def loss(self, rows: Sequence[Row_contra], edit: nn.Module | None, /) -> torch.Tensor:
        """Mean loss of a minibatch, differentiable in the edit's parameters."""

    def mean_loss(self, rows: Sequence[Row_contra], edit: nn.Module | None, /) -> float:
        """Mean loss over all rows."""


@dataclass
class Fitted(Generic[E]):
    """One edit per label, and what `probe.json` says of them."""

    edits: list[E]
    training: dict[str, Any]
    metrics: dict[str, Any]


@dataclass
class EditTraining:
    """The validation loss of the edit at its best, the epoch it had it, and the losses of all epochs."""

    loss: float = math.inf
    best_epoch: int = 0
    epochs: int = 0
    losses: list[float] = field(default_factory=list)


def fit_edits(task: FitTask, plan: EditPlan, make: Callable[[int, float, torch.Generator], E]) -> Fitted[E]:
    """Fit an edit to the replies that show each label; the same task gives the same edits.

    Each is trained on the task's training part; the epoch with the lowest validation loss is kept.

    Args:
        task: What to fit to what.
        plan: Hyperparameters.
        make: (hidden_size, scale, generator) -> an edit to start from, close to no edit; scale: the mean of
            |x - mean(x)|.

    Raises:
        DataError: For too few or too long rows.
        UsageError: For a rank above d.
    """
    parts = task.parts
    if plan.rank > task.identity.hidden_size:
        raise UsageError(f"rank: {plan.rank} of a residual stream of size {task.identity.hidden_size}")
    model = FrozenModel(task.model, task.layer, task.identity.num_layers, task.engine_options)
    tokens = [_encoded(task, model, plan, index) for index in range(len(task.rows))]
    scale = activation_scale(model.stream([tokens[index] for index in parts["train"][:_SCALE_ROWS]]))
    name = f"fitting {task.method}"
    bar = task.progress.add_task(name, total=len(task.labels)) if task.progress else None
    edits, training, metrics = [], {}, {}
    for index, label in enumerate(task.labels):
        of = {
            part: [tokens[row] for row in rows if task.targets[row, index] > 0]
            for part, rows in parts.items()
        }
        generator = torch.Generator().manual_seed(plan.seed)
        edit = make(model.hidden_size, scale, generator).to(model.device)

        def tell(loss: float, done: int = index, label: str = label) -> None:
            if task.progress is not None and bar is not None:
                task.progress.update(bar, completed=done, description=f"{name}, {label} (loss {loss:.4f})")

        found = train_edit(model, edit, of["train"], of["validation"], plan, tell)
        before = model.mean_loss(of["test"], None)
        after = model.mean_loss(of["test"], edit)
        edits.append(edit.cpu())
        training[label] = {
            "replies": {part: len(rows) for part, rows in of.items()},
            "best_epoch": found.best_epoch,
            "epochs_run": found.epochs,
            "validation_losses": found.losses,
            "validation_loss": found.loss,
        }
        metrics[label] = {"replies": len(of["test"]), "loss_unsteered": before, "loss": after}
        tell(found.loss, index + 1)
    return Fitted(
        edits,
        {**task.training(plan, recorded=False), "positions": REPLY.text, "labels": training},
        {"language_model": {"labels": metrics}},
    )


def orthonormal_rows(rank: int, hidden_size: int, generator: torch.Generator) -> nn.Linear:
    """A layer without bias whose weight keeps orthonormal rows while it is trained.

    Args:
        rank: Rows of the weight.
        hidden_size: Columns, d; at least `rank`.
        generator: Draws the weight it starts from.
    """
    layer = nn.utils.skip_init(nn.Linear, hidden_size, rank, bias=False)
    nn.init.orthogonal_(layer.weight, generator=generator)
    nn.utils.parametrizations.orthogonal(layer, orthogonal_map="householder", use_trivialization=False)
    return layer


def _encoded(task: FitTask, model: FrozenModel, plan: EditPlan, index: int) -> Tokens:
    try:
        return model.encode(task.rows[index], system=plan.system)
    except DataError as error:
        raise DataError(f"{row_name(task.rows[index], index)}: {error}") from None


def train_edit(
    model: Editable[Row],
    edit: TrainableEdit,
    train: Sequence[Row],
    validation: Sequence[Row],
    plan: EditPlan,
    tell: Callable[[float], None],
) -> EditTraining:
    """Adam on minibatches, in as many phases as the edit has; leaves the edit at its best, in eval mode.

    Args:
        model: Gives the losses.
        edit: What is trained, in place.
        train, validation: Rows; the validation loss says which epoch was the best.
        plan: Steps, epochs, batch size and learning rate.
        tell: Called with the validation loss of every epoch.

    Returns:
        Losses and epochs.

    Raises:
        DataError: If the loss is not finite.
    """
    rng = random.Random(plan.seed)
    found, steps = EditTraining(), plan.steps
    while steps:
        per_epoch = math.ceil(len(train) / plan.batch_size)
        epochs = min(plan.epochs, max(1, round(steps / per_epoch)))
        edit.eval()
        best, best_epoch = _state(edit), found.epochs
        found.loss = model.mean_loss(validation, edit)  # a further phase may start from a worse edit
        optimizer = torch.optim.Adam([p for p in edit.parameters() if p.requires_grad], plan.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * per_epoch)
        for epoch in range(epochs):
            edit.train()
            edit.begin_epoch(epoch / epochs)
            for rows in _batches(train, plan.batch_size, rng):
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(model.loss(rows, edit))
                optimizer.step()
                schedule.step()
            edit.eval()
            loss = model.mean_loss(validation, edit)
            found.losses.append(loss)
            found.epochs += 1
            tell(loss)
            if loss < found.loss:
                found.loss, best_epoch, best = loss, found.epochs, _state(edit)
            elif found.epochs - best_epoch >= plan.patience:
                break
        if not math.isfinite(found.loss):
            raise DataError("the fit diverged: the validation loss is not finite; try a lower learning rate")
        edit.load_state_dict(best)
        found.best_epoch = best_epoch
        steps = edit.next_phase()
    edit.eval()
    return found


def _batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[Row]]:
    """All rows once, in random order, those of similar length together: little of a batch is padding."""
    order = rng.sample(range(len(rows)), len(rows))
    batches = []
    for start in range(0, len(order), _POOL * size):
        pool = sorted(order[start : start + _POOL * size], key=lambda index: len(rows[index]))
        batches += [pool[first : first + size] for first in range(0, len(pool), size)]
    rng.shuffle(batches)
    for batch in batches:
        yield [rows[index] for index in batch]


def _state(edit: TrainableEdit) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in edit.state_dict().items()}
