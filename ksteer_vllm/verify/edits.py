"""The edits `ksteer verify` asks for, and each one's definition in x-space by `ksteer_kernels.reference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels.reference import ace, loreft, lorest, mat, mlp, orbit, vectors
from ksteer_vllm.spec.families import FAMILIES
from ksteer_vllm.verify.subject import Card

__all__ = ["EditPlan", "edited", "plan_edit"]

STEPS = 4


@dataclass(frozen=True)
class EditPlan:
    """One probe's edit at one layer towards one label, with the strength found so far."""

    card: Card
    layer: int
    label: str
    method: str
    alpha: float
    num_steps: int | None

    @property
    def name(self) -> str:
        return f"layer {self.layer} ({self.card.name})"

    def spec(self, where: Mapping[str, Any] | str, **changes: Any) -> dict[str, Any]:
        """The request's spec, with further fields."""
        steps = {} if self.num_steps is None else {"num_steps": self.num_steps}
        return {
            "probe": self.card.name,
            "method": self.method,
            "target": [self.label],
            "alpha": self.alpha,
            "layers": [self.layer],
            "where": where,
            **steps,
            **changes,
        }

    def scaled(self, factor: float) -> EditPlan:
        """With another strength, inside what a spec may say."""
        return replace(self, alpha=min(max(self.alpha * factor, 1e-6), 1e9))

    def in_one_step(self) -> EditPlan:
        """With the same strength in all, in one gradient step."""
        if self.num_steps is None:
            return self
        return replace(self, num_steps=1, alpha=self.alpha * self.num_steps)

    def other(self) -> EditPlan:
        """An edit of the same place that does something else: another label, or half the strength."""
        labels = self.card.labels
        if len(labels) == 1:
            return self.scaled(0.5)
        return replace(self, label=labels[1] if self.label == labels[0] else labels[0])


def plan_edit(card: Card, layer: int, max_steps: int) -> EditPlan | None:
    """The probe's first method that takes a target and a strength; None if it has none."""
    for method in card.methods:
        use = FAMILIES[card.family].methods.get(method)
        if use is None or not {"target", "alpha"} <= use.takes:
            continue
        alpha = card.default_alpha.get(method, use.default_alpha) or 1.0
        steps = min(STEPS, max_steps) if "num_steps" in use.takes else None
        return EditPlan(card, layer, card.labels[0], method, abs(alpha), steps)
    return None


Definition = Callable[[Mapping[str, Tensor], Tensor, int, EditPlan], Tensor]


def edited(plan: EditPlan, x: Tensor) -> Tensor | None:
    """x' [n, d] of x [n, d] float64 at the plan's layer; None for a method that is not defined here."""
    definition = _DEFINITIONS.get((plan.card.family, plan.method))
    if definition is None or plan.card.probe is None:
        return None
    probe = plan.card.probe
    return definition(probe.at(plan.layer), x, probe.labels.index(plan.label), plan)


def _gradient(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
    w1 = t["w1"] / t["input_std"]
    probe = mlp.MLPWeights(w1, t["b1"] - w1 @ t["input_mean"], t["w2"], t["b2"], t["w3"], t["b3"])
    towards = torch.zeros(len(t["b3"]), dtype=x.dtype)
    towards[k] = -1.0
    return mlp.gradient_steps(x, probe, towards, alpha=plan.alpha, num_steps=plan.num_steps or 1)[0]


def _adding(name: str) -> Definition:
    def add(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
        one = torch.zeros(len(t[name]), dtype=x.dtype)
        one[k] = 1.0
        return vectors.add(x, t[name], one, alpha=plan.alpha)

    return add


def _linear(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
    return x + plan.alpha * (plan.num_steps or 1) * t["weight"][k] / t["input_std"]


def _ace(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
    return ace.ace(x, t["directions"][k], t["negatives_mean"][k], alpha=plan.alpha)


def _loreft(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
    return loreft.loreft(x, t["rotation"][k], t["weight"][k], t["bias"][k], alpha=plan.alpha)


def _lorest(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
    return lorest.lorest(x, t["basis"][k], t["removed"][k], t["bias"][k], alpha=plan.alpha)


def _orbit(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
    gate = (t["gate_weight"][k], t["gate_bias"][k])
    return orbit.orbit(x, t["plane"][k], t["angle"][k], *gate, alpha=plan.alpha)


def _mat(t: Mapping[str, Tensor], x: Tensor, k: int, plan: EditPlan) -> Tensor:
    return mat.mat_steer(x, t["vectors"][k], t["gate_weight"][k], t["gate_bias"][k], alpha=plan.alpha)


_DEFINITIONS: dict[tuple[str, str], Definition] = {
    ("mlp", "gradient"): _gradient,
    ("mlp", "add"): _adding("label_vectors"),
    ("linear", "gradient"): _linear,
    ("vectors", "add"): _adding("vectors"),
    ("sae", "add"): _adding("w_dec"),
    ("ace", "ace"): _ace,
    ("loreft", "loreft"): _loreft,
    ("lorest", "lorest"): _lorest,
    ("orbit", "orbit"): _orbit,
    ("mat", "mat_steer"): _mat,
}
