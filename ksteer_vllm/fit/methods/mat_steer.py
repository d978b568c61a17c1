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

from collections.abc import Callable, Sequence
from typing import Annotated, Any

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

    def gates(self, z: Tensor) -> Tensor:
        """[K, n]: label k's gate on its own tokens; z [K, n, d] standardised."""
        return torch.sigmoid((z * self.gate_weight[:, None]).sum(-1) + self.gate_bias[:, None])


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
        sides = _draw(test, torch.Generator().manual_seed(plan.seed), _HELD_OUT)
        before, after = objective.discrepancies(model, *sides)
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

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        square = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist").square() / width[:, None, None] ** 2
        return sum((torch.exp(-square / (2 * w * w)) for w in _WIDTHS), torch.zeros_like(square)).mean((1, 2))

    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)) / len(_WIDTHS)


class _Objective:
    """The training loss; activations in units of `scale`, gates on coordinates of unit deviation."""

    def __init__(self, mean: Tensor, std: Tensor, scale: float, plan: MATPlan) -> None:
        self.mean, self.std, self.scale, self.plan = mean, std, scale, plan

    def __call__(self, model: GatedVectors, absent: Tensor, shown: Tensor) -> Tensor:
        """absent, shown: [K, n, d], tokens without and with each label."""
        open_absent, open_shown = (model.gates((x - self.mean) / self.std) for x in (absent, shown))
        _, after = self.discrepancies(model, absent, shown)
        penalty = self.plan.positive * open_shown.square().mean(1) + self.plan.sparse * open_absent.mean(1)
        units = nn.functional.normalize(model.vectors, dim=1)
        overlap = torch.triu(units @ units.T, diagonal=1).square().sum()
        return (after + penalty).sum() + self.plan.orthogonal * overlap

    def discrepancies(self, model: GatedVectors, absent: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Squared MMD [K] to the tokens with the label, of those without it: as they are, and edited."""
        gates = model.gates((absent - self.mean) / self.std)
        start, goal = (absent - self.mean) / self.scale, (shown - self.mean) / self.scale
        width = torch.cdist(start, goal).flatten(1).median(1).values
        edited = start + gates[:, :, None] * model.vectors[:, None]
        return squared_mmd(start, goal, width), squared_mmd(edited, goal, width)


def _train(
    objective: Callable[[GatedVectors, Tensor, Tensor], Tensor],
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
    held_out = _draw(validation, generator, _HELD_OUT)
    lowest, best_step, best = float("inf"), 0, model.state_dict()
    bar = progress.add_task("fitting gated vectors", total=plan.steps) if progress else None
    for step in range(1, plan.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(objective(model, *_draw(train, generator, plan.batch_size)))
        optimizer.step()
        if step % _EVALUATE_EVERY and step < plan.steps:
            continue
        with torch.no_grad():
            loss = objective(model, *held_out).item()
        if loss < lowest:
            lowest, best_step = loss, step
            best = {name: value.clone() for name, value in model.state_dict().items()}
        if progress is not None and bar is not None:
            progress.update(bar, completed=step, description=f"fitting gated vectors (loss {loss:.4f})")
    if lowest == float("inf"):
        raise DataError("the fit diverged: the validation loss is not finite; try a lower learning rate")
    model.load_state_dict(best)
    return model, best_step


def _draw(tokens: LabelledActivations, generator: torch.Generator, count: int) -> Sequence[Any]:
    """[K, count, d] twice: random tokens (with replacement) without each label, and with it."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for shown in tokens.targets.T > 0.5:
        for side, keep in zip(sides, (~shown, shown), strict=True):
            found = keep.nonzero()[:, 0]
            side.append(tokens.stream.take(found[torch.randint(len(found), (count,), generator=generator)]))
    return [torch.stack(side) for side in sides]
