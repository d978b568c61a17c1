"""Contrast pairs: an input, and the same input with some attributes set to their targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.toy.environment import Toy

__all__ = ["Pairs", "draw_pairs", "labelled"]


@dataclass(frozen=True)
class Pairs:
    """n inputs without any of the targets, and the same inputs with all of them.

    before, after: their residual streams, [n, d] float32. values, wanted: what they show, [n, attributes].
    """

    before: Tensor
    after: Tensor
    values: Tensor
    wanted: Tensor


def draw_pairs(toy: Toy, targets: Mapping[int, int], count: int, generator: torch.Generator) -> Pairs:
    """Pairs for these targets, attribute -> value; both inputs of a pair have the same noise elsewhere.

    The targeted attributes start at any other value, all others are drawn at random and stay.
    """
    values = toy.values(count, generator)
    attributes = torch.tensor(list(targets))
    goal = torch.tensor(list(targets.values()))
    away = torch.randint(1, toy.plan.values, (count, len(goal)), generator=generator)
    values[:, attributes] = (goal + away) % toy.plan.values
    wanted = values.clone()
    wanted[:, attributes] = goal
    before, shown = (
        toy.inputs(which, generator).view(count, toy.plan.attributes, -1) for which in (values, wanted)
    )
    after = before.clone()
    after[:, attributes] = shown[:, attributes]
    stream = toy.classifier.stream
    return Pairs(stream(before.flatten(1)), stream(after.flatten(1)), values, wanted)


def labelled(pairs: Pairs, targets: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """x [2n, d], the streams before and after, and which of the targets each shows, [2n, K] of 0 and 1."""
    goal = torch.tensor(list(targets.values()))
    shown = [values[:, list(targets)] == goal for values in (pairs.values, pairs.wanted)]
    return torch.cat([pairs.before, pairs.after]), torch.cat(shown).float()
