"""MAT-Steer (Nguyen et al. 2025, arXiv:2502.12446): gated vectors, one per label. Family `mat`.

    x' = x + alpha g_k(x) v_k,   g_k(x) = sigmoid(gate_k . x + b_k)

trained so that the edited tokens that do not show label k are distributed like those that do (the squared
maximum mean discrepancy, Gretton et al. 2012), with gates near 0 on tokens that show it, few open gates
otherwise, and vectors orthogonal to each other:

    sum_k MMD^2(x'_-, x_+) + positive mean g_k(x_+)^2 + sparse mean g_k(x_-)
        + orthogonal sum_{k<j} cos^2(v_k, v_j)

The paper fits all labels' edits together as one; here each must work alone, because a request names labels,
so a label's discrepancy is that of its own edit. The norm of x is kept by the spec's `preserve_norm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from rich.progress import Progress
from torch import Tensor, nn

from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.heldout import evaluate_ranking
from ksteer_vllm.fit.plans import SplitPlan
from ksteer_vllm.fit.statistics import activation_scale, check_directions, label_vectors, standardisation
from ksteer_vllm.fit.task import FitTask, LabelledActivations
from ksteer_vllm.probes.probe import Probe

__all__ = ["GatedVectors", "MATPlan", "fit", "squared_mmd"]

_WIDTHS = (0.5, 1.0, 2.0)
_EVALUATE_EVERY = 25
_HELD_OUT = 512


class MATPlan(SplitPlan):
    """Options of `--method mat_steer`."""

    steps: Annotated[int, Field(ge=1, description="Number of steps of Adam.")] = 300
    batch_size: Annotated[int, Field(ge=2, description="Tokens of either side, per label.")] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    positive: Annotated[
        float, Field(ge=0, description="Weight of gates that are open on tokens that show the label.")
    ] = 0.1
    sparse: Annotated[float, Field(ge=0, description="Weight of gates that are open on other tokens.")] = 0.01
    orthogonal: Annotated[float, Field(ge=0, description="Weight of vectors that are not orthogonal.")] = 0.1


class GatedVectors(nn.Module):
    """The edits of K labels, vectors in units of `scale`, gates on standardised activations."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())
        self.gate_weight = nn.Parameter(torch.zeros_like(vectors))
        self.gate_bias = nn.Parameter(torch.zeros(len(vectors)))

    def gates(self, x: Tensor, unit: Tensor) -> Tensor:
        """[K, n]: label k's gate on its own tokens; x * unit is standardised, x [K, n, d], unit [d]."""
        return torch.sigmoid(_along(x, self.gate_weight * unit) + self.gate_bias[:, None])


def fit(task: FitTask) -> Probe:
    """Vectors and gates from the training rows, kept where the validation rows' objective is lowest.

    Held-out metrics: the discrepancy before and after, and how the closed gates rank tokens by label.
    """
    plan = task.plan(MATPlan)
    parts, tokens = task.parts, task.activations()
    train, validation, test = (tokens.of_rows(parts[name]) for name in ("train", "validation", "test"))
    differences = label_vectors(train.stream, train.targets)
    check_directions(differences, task.labels)
    mean, std = standardisation(train.stream)
    scale = activation_scale(train.stream)
    objective = _Objective(mean, std, scale, plan)
    model, best = _train(objective, differences / scale, train, validation, plan, task.progress)
    with torch.no_grad():
        weight = model.gate_weight.double() / std.double()
        bias = model.gate_bias.double() - weight @ mean.double()
        vectors = model.vectors * scale
        sides = objective.sides(*_Sampler(test).draw(torch.Generator().manual_seed(plan.seed), _HELD_OUT))
        before, after = sides.discrepancy(), objective.edited(model, sides)
    logits = test.stream.map(lambda x: x.double() @ weight.T + bias)
    discrepancy = {
        label: {"unsteered": a, "steered": b}
        for label, a, b in zip(task.labels, before.tolist(), after.tolist(), strict=True)
    }
    return task.probe(
        "mat",
        {"vectors": vectors, "gate_weight": weight, "gate_bias": bias},
        training={**task.training(plan), "best_step": best},
        metrics={
            **evaluate_ranking(-logits, test.targets, test.row, task.labels),
            "squared_mmd": {"labels": discrepancy},
        },
        scale=scale,
    )


def squared_mmd(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """[K]: biased estimate between samples a [K, n, d] and b [K, m, d], a mean of Gaussian kernels whose
    widths are `width` [K] times 1/2, 1 and 2."""

    return (
        _kernel(_squares(a, a), width) + _kernel(_squares(b, b), width) - 2 * _kernel(_squares(a, b), width)
    )


def _kernel(squares: Tensor, width: Tensor) -> Tensor:
    """[K]: the mean over pairs of the mean of the Gaussian kernels; squares: [K, n, m], squared distances."""
    exponent = squares / (-2 * width[:, None, None] ** 2)
    return torch.stack([torch.exp(exponent / (w * w)).mean((1, 2)) for w in _WIDTHS]).mean(0)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """[K, n, m]: squared distances of a [K, n, d] and b [K, m, d]."""
    norms = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :]
    return torch.baddbmm(norms, a, b.mT, alpha=-2).clamp_min_(0)


def _along(x: Tensor, directions: Tensor) -> Tensor:
    """[K, n]: x . direction of label k's own tokens; x [K, n, d], directions [K, d]."""
    return torch.bmm(x, directions[:, :, None])[:, :, 0]


@dataclass(frozen=True)
class _Sides:
    """Tokens without and with each label, and their distances, which are those of unedited tokens.

    An edit moves a token along one vector, so distances after it follow from these and from projections onto
    the vector: |s_i + g_i v - y|^2 = |s_i - y|^2 + 2 g_i (s_i - y) . v + g_i^2 |v|^2. No product over d
    dimensions of all pairs is left to differentiate, and held-out tokens need theirs once.

    Attributes:
        absent, shown: [K, n, d] and [K, m, d], centred, in units of `scale`.
        within: [K, n, n], squared distances of `absent`.
        across: [K, n, m], squared distances of `absent` and `shown`.
        width: [K], the kernel's: the median distance of the two.
    """

    absent: Tensor
    shown: Tensor
    within: Tensor
    across: Tensor
    width: Tensor

    @cached_property
    def _goal(self) -> Tensor:
        return _kernel(_squares(self.shown, self.shown), self.width)

    def discrepancy(self) -> Tensor:
        """[K]: the squared MMD of the tokens as they are."""
        return _kernel(self.within, self.width) + self._goal - 2 * _kernel(self.across, self.width)

    def edited(self, gates: Tensor, vectors: Tensor) -> Tensor:
        """[K]: the squared MMD of absent + gates * vectors; gates [K, n], vectors [K, d]."""
        length = vectors.square().sum(1)[:, None, None]
        along = _along(self.absent, vectors)
        step = gates[:, :, None] - gates[:, None, :]
        within = self.within + 2 * step * (along[:, :, None] - along[:, None, :]) + step.square() * length
        step = gates[:, :, None]
        ahead = along[:, :, None] - _along(self.shown, vectors)[:, None, :]
        across = self.across + 2 * step * ahead + step.square() * length
        pulled = _kernel(within.clamp_min(0), self.width) - 2 * _kernel(across.clamp_min(0), self.width)
        return pulled + self._goal


class _Objective:
    """The training loss; activations in units of `scale`, gates on coordinates of unit deviation."""

    def __init__(self, mean: Tensor, std: Tensor, scale: float, plan: MATPlan) -> None:
        self.mean, self.scale, self.plan = mean, scale, plan
        self.unit = scale / std

    def sides(self, absent: Tensor, shown: Tensor) -> _Sides:
        """What the loss reads of tokens without and with each label: [K, n, d], [K, m, d]."""
        start, goal = (absent - self.mean) / self.scale, (shown - self.mean) / self.scale
        across = _squares(start, goal)
        return _Sides(start, goal, _squares(start, start), across, across.flatten(1).median(1).values.sqrt())

    def __call__(self, model: GatedVectors, sides: _Sides) -> Tensor:
        gates, open_shown = model.gates(sides.absent, self.unit), model.gates(sides.shown, self.unit)
        penalty = self.plan.positive * open_shown.square().mean(1) + self.plan.sparse * gates.mean(1)
        units = nn.functional.normalize(model.vectors, dim=1)
        overlap = torch.triu(units @ units.T, diagonal=1).square().sum()
        return (sides.edited(gates, model.vectors) + penalty).sum() + self.plan.orthogonal * overlap

    def edited(self, model: GatedVectors, sides: _Sides) -> Tensor:
        """[K]: the squared MMD that is left when the model edits the tokens without each label."""
        return sides.edited(model.gates(sides.absent, self.unit), model.vectors)


def _train(
    objective: _Objective,
    vectors: Tensor,
    train: LabelledActivations,
    validation: LabelledActivations,
    plan: MATPlan,
    progress: Progress | None,
) -> tuple[GatedVectors, int]:
    """(the model at its best, the step of that); vectors [K, d] to start from."""
    generator = torch.Generator().manual_seed(plan.seed)
    model = GatedVectors(vectors)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.learning_rate)
    held_out = objective.sides(*_Sampler(validation).draw(generator, _HELD_OUT))
    sampler = _Sampler(train)
    lowest, best_step, best = float("inf"), 0, model.state_dict()
    bar = progress.add_task("fitting gated vectors", total=plan.steps) if progress else None
    for step in range(1, plan.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        sides = objective.sides(*sampler.draw(generator, plan.batch_size))
        torch.autograd.backward(objective(model, sides))
        optimizer.step()
        if step % _EVALUATE_EVERY and step < plan.steps:
            continue
        with torch.no_grad():
            loss = objective(model, held_out).item()
        if loss < lowest:
            lowest, best_step = loss, step
            best = {name: value.clone() for name, value in model.state_dict().items()}
        if progress is not None and bar is not None:
            progress.update(bar, completed=step, description=f"fitting gated vectors (loss {loss:.4f})")
    if lowest == float("inf"):
        raise DataError("the fit diverged: the validation loss is not finite; try a lower learning rate")
    model.load_state_dict(best)
    return model, best_step


class _Sampler:
    """Random tokens without each label, and with it."""

    def __init__(self, tokens: LabelledActivations) -> None:
        self._stream = tokens.stream
        shown = tokens.targets.T > 0.5
        self._sides = [[keep.nonzero()[:, 0] for keep in side] for side in (~shown, shown)]

    def draw(self, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """[K, count, d] twice, with replacement."""
        drawn: tuple[list[Tensor], list[Tensor]] = ([], [])
        for of_label in zip(*self._sides, strict=True):
            for side, found in zip(drawn, of_label, strict=True):
                chosen = torch.randint(len(found), (count,), generator=generator)
                side.append(self._stream.take(found[chosen]))
        absent, shown = drawn
        return torch.stack(absent), torch.stack(shown)
