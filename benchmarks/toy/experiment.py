"""One cell of `benchmarks.steering_clear`: an environment, a number of examples, every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from benchmarks.toy import fits
from benchmarks.toy.environment import Classifier, Toy, ToyPlan, make_toy
from benchmarks.toy.fits import Directions, Plans
from benchmarks.toy.methods import (
    Edit,
    Steps,
    add_ace,
    add_gradient,
    add_lorefts,
    add_lorests,
    add_vectors,
    k_steering,
)
from benchmarks.toy.pairs import Pairs, draw_pairs
from ksteer_kernels.reference.vectors import matched_random
from ksteer_vllm.fit.methods.loreft import LoReFT
from ksteer_vllm.fit.methods.lorest import LoReST

__all__ = ["K_STEERING", "ONE_BY_ONE", "TOGETHER", "UNSTEERED", "Cell", "run_cell"]

UNSTEERED = "unsteered"

ONE_BY_ONE, TOGETHER = "one by one", "together"
"""Fitted value by value and combined by the request, or fitted to the combination."""

K_STEERING = {
    "K-Steering, 1 step": Steps(1),
    "K-Steering, 8 steps": Steps(8),
    "K-Steering, 8 steps, softmin": Steps(8, "softmin"),
    "K-Steering, 32 steps, softmin": Steps(32, "softmin"),
}
MULTIPLES = tuple(2 ** (i / 2) for i in range(-6, 11))
"""Of a method's natural strength, see `benchmarks.toy.methods`."""

_TYPICAL = 256


class Cell(BaseModel):
    """What one cell runs. examples: contrast pairs per value. sizes: attributes steered at once.

    together: those sizes for which methods are also fitted to the combination, to as many pairs. ranks: of
    LoReFT and LoReST; noises: of the inputs on which the probe is trained, see `FitPlan`. Of these, as of the
    strengths, calibration takes one. calibration, test: inputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    examples: int
    sizes: tuple[int, ...]
    together: tuple[int, ...] = (2, 4, 8)
    ranks: tuple[int, ...] = (1, 8)
    noises: tuple[float, ...] = (0.3, 1.0)
    calibration: int = 128
    test: int = 512
    toy: ToyPlan = ToyPlan()
    plans: Plans = Plans()


@dataclass(frozen=True)
class _Split:
    """Held-out pairs for one combination of targets. targeted: [attributes] bool."""

    pairs: Pairs
    targeted: Tensor

    def measures(self, toy: Toy, x: Tensor) -> dict[str, float]:
        """Shares of what is read from x: see `run_cell`."""
        right = toy.read(x) == self.pairs.wanted
        others = right[:, ~self.targeted]
        return {
            "targeted": right[:, self.targeted].double().mean().item(),
            "all_targeted": right[:, self.targeted].all(1).double().mean().item(),
            "others": others.double().mean().item() if others.numel() else float("nan"),
            "everything": right.all(1).double().mean().item(),
        }


@lru_cache(maxsize=1)
def _toy_of(plan: ToyPlan, seed: int) -> Toy:
    return make_toy(plan, seed)


def run_cell(cell: Cell) -> list[dict[str, Any]]:
    """One row per method, setting and number of targets, measured on test inputs that show no target.

    targeted: share of targeted attributes that read their target; all_targeted: share of inputs where all of
    them do. others: share of the other attributes that read what the input shows (NaN if there are none).
    everything: share of inputs where all eight attributes read as wanted. multiple: the strength, the one of
    MULTIPLES, together with the fit (rank or noise) if the method has several, that has the highest
    targeted + others on the calibration inputs (targeted alone where there are no others; the smaller
    strength of equals). moved: mean |x' - x| / |x|.
    """
    toy = _toy_of(cell.toy, cell.seed)
    base = 1_000_003 * (cell.seed + 1)
    targets = _targets(toy, base)
    splits = {size: _splits(cell, toy, _first(targets, size), base + size) for size in cell.sizes}
    generator = torch.Generator().manual_seed(base + 100 * cell.examples)
    each = [draw_pairs(toy, {a: v}, cell.examples, generator) for a, v in targets.items()]
    joint = {size: draw_pairs(toy, _first(targets, size), cell.examples, generator) for size in cell.together}
    one_by_one = _OneByOne(cell, toy, targets, each)
    one_by_one = _OneByOne(cell, toy, targets, each)
    rows = []
    for size, (calibration, test) in splits.items():
        found = {(name, ONE_BY_ONE): edits for name, edits in one_by_one.edits(size).items()}
        if size in joint:
            found |= {(name, TOGETHER): edits for name, edits in _together(cell, toy, joint[size]).items()}
        about = {"seed": cell.seed, "examples": cell.examples, "size": size}
        unsteered = test.measures(toy, test.pairs.before)
        rows.append({**about, "method": UNSTEERED, "setting": ONE_BY_ONE, **unsteered})
        for (name, setting), edits in found.items():
            measured = _measured(toy, edits, calibration, test)
            rows.append({**about, "method": name, "setting": setting, **measured})
    return rows


class _OneByOne:
    """What is fitted value by value, and its combinations: the first targets, as many as a request has."""

    def __init__(self, cell: Cell, toy: Toy, targets: Mapping[int, int], each: Sequence[Pairs]) -> None:
        self.directions = fits.fit_directions(each)
        self.random = matched_random(self.directions.difference, cell.seed).float()
        self.probes = [
            fits.fit_probe(each, targets, cell.plans.probe.model_copy(update={"noise": noise}))
            for noise in cell.noises
        ]
        self.linear = fits.fit_linear(each, targets, cell.plans.linear)
        fit_loreft, fit_lorest = _edit_fits(cell)
        self.lorefts = [[fit_loreft(toy.classifier, pairs, rank) for pairs in each] for rank in cell.ranks]
        self.lorests = [[fit_lorest(toy.classifier, pairs, rank) for pairs in each] for rank in cell.ranks]
        self.x = torch.cat([pairs.before for pairs in each])[:_TYPICAL]

    def edits(self, size: int) -> dict[str, list[Edit]]:
        """Per method its candidates, of which calibration takes one."""
        vectors = self.directions.difference[:size]
        directions = Directions(vectors, self.directions.negatives_mean[:size])
        steered = {
            name: [k_steering(probe, size, steps, self.x) for probe in self.probes]
            for name, steps in K_STEERING.items()
        }
        return {
            **steered,
            "linear probe": [add_gradient(self.linear[:size], self.x)],
            "CAA": [add_vectors(vectors)],
            "ACE": [add_ace(directions)],
            "LoReFT": [add_lorefts(fitted[:size]) for fitted in self.lorefts],
            "LoReST": [add_lorests(fitted[:size]) for fitted in self.lorests],
            "random direction": [add_vectors(self.random[:size])],
        }


def _together(cell: Cell, toy: Toy, pairs: Pairs) -> dict[str, list[Edit]]:
    """Methods that can take a combination of targets for one label."""
    directions = fits.fit_directions([pairs])
    fit_loreft, fit_lorest = _edit_fits(cell)
    return {
        "CAA": [add_vectors(directions.difference)],
        "ACE": [add_ace(directions)],
        "LoReFT": [add_lorefts([fit_loreft(toy.classifier, pairs, rank)]) for rank in cell.ranks],
        "LoReST": [add_lorests([fit_lorest(toy.classifier, pairs, rank)]) for rank in cell.ranks],
    }


def _edit_fits(cell: Cell) -> tuple[Callable[..., LoReFT], Callable[..., LoReST]]:
    """LoReFT's and LoReST's fit at a rank."""
    loreft, lorest = cell.plans.loreft, cell.plans.lorest

    def fit_loreft(classifier: Classifier, pairs: Pairs, rank: int) -> LoReFT:
        return fits.fit_loreft(classifier, pairs, loreft.model_copy(update={"rank": rank}))

    def fit_lorest(classifier: Classifier, pairs: Pairs, rank: int) -> LoReST:
        return fits.fit_lorest(classifier, pairs, lorest.model_copy(update={"rank": rank}))

    return fit_loreft, fit_lorest


@torch.no_grad()
def _measured(toy: Toy, edits: Sequence[Edit], calibration: _Split, test: _Split) -> dict[str, float]:
    def score(chosen: tuple[Edit, float]) -> float:
        edit, multiple = chosen
        found = calibration.measures(toy, edit(calibration.pairs.before, multiple))
        parts = [found["targeted"], found["others"]]
        return sum(part for part in parts if not math.isnan(part))

    # max takes the first of equals: the smaller strength.
    best, multiple = max(((edit, m) for m in MULTIPLES for edit in edits), key=score)
    before = test.pairs.before
    after = best(before, multiple)
    moved = ((after - before).norm(dim=1) / before.norm(dim=1)).mean().item()
    return {**test.measures(toy, after), "multiple": multiple, "moved": moved}


def _splits(cell: Cell, toy: Toy, targets: Mapping[int, int], seed: int) -> tuple[_Split, _Split]:
    """Calibration and test inputs, the same for every number of examples."""
    targeted = torch.zeros(toy.plan.attributes, dtype=torch.bool)
    targeted[list(targets)] = True
    generator = torch.Generator().manual_seed(seed)
    calibration, test = (
        _Split(draw_pairs(toy, targets, count, generator), targeted)
        for count in (cell.calibration, cell.test)
    )
    return calibration, test


def _targets(toy: Toy, seed: int) -> dict[int, int]:
    """A value for every attribute, in random order; a request for n targets takes the first n."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(toy.plan.attributes, generator=generator).tolist()
    goals = torch.randint(toy.plan.values, (len(order),), generator=generator).tolist()
    return dict(zip(order, goals, strict=True))


def _first(targets: Mapping[int, int], size: int) -> dict[int, int]:
    return dict(list(targets.items())[:size])
