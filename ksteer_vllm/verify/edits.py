"""The edits that `ksteer verify` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.families import FAMILIES
from ksteer_vllm.verify.subject import Card

__all__ = ["PlannedEdit", "plan_edit"]

STEPS = 4


@dataclass(frozen=True)
class PlannedEdit:
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

    def edit(self) -> Edit:
        """The edit, parsed; which tokens it edits is left to the caller."""
        return Edit.model_validate(self.spec("both"))

    def scaled(self, factor: float) -> PlannedEdit:
        """The edit with its strength multiplied, within what a spec allows."""
        return replace(self, alpha=min(max(self.alpha * factor, 1e-6), 1e9))

    def in_one_step(self) -> PlannedEdit:
        """The edit in a single gradient step, with the same total strength."""
        if self.num_steps is None:
            return self
        return replace(self, num_steps=1, alpha=self.alpha * self.num_steps)

    def other(self) -> PlannedEdit:
        """Another edit at the same layer: towards another label, or with half the strength."""
        labels = self.card.labels
        if len(labels) == 1:
            return self.scaled(0.5)
        return replace(self, label=labels[1] if self.label == labels[0] else labels[0])


def plan_edit(card: Card, layer: int, max_steps: int) -> PlannedEdit | None:
    """The probe's first method that takes a target and a strength; None if it has none."""
    for method in card.methods:
        use = FAMILIES[card.family].methods.get(method)
        if use is None or not {"target", "alpha"} <= use.takes:
            continue
        alpha = card.default_alpha.get(method, use.default_alpha) or 1.0
        steps = min(STEPS, max_steps) if "num_steps" in use.takes else None
        return PlannedEdit(card, layer, card.labels[0], method, abs(alpha), steps)
    return None
