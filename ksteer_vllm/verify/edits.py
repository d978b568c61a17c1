"""The edits that `ksteer verify` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.families import FAMILIES, Use
from ksteer_vllm.verify.subject import Card

__all__ = ["PlannedEdit", "plan_edit"]

STEPS = 4


@dataclass(frozen=True)
class PlannedEdit:
    """One probe's edit at one layer towards one label, with the strength found so far.

    fields: whatever else of the edit is asked for, so that the probe's default edit adds nothing to it.
    """

    card: Card
    layer: int
    label: str
    method: str
    alpha: float
    num_steps: int | None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        return str(self.fields.get("metric", "raw"))

    @property
    def name(self) -> str:
        metric = "" if self.metric == "raw" else f", {self.metric}"
        return f"layer {self.layer} ({self.card.name}{metric})"

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
            **self.fields,
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


def plan_edit(card: Card, layer: int, max_steps: int, metric: str = "") -> PlannedEdit | None:
    """The probe's first method that takes a target and a strength; None if it has none.

    Args:
        card: The probe.
        layer: Where the edit acts.
        max_steps: The engine's limit.
        metric: Of the gradient steps; None is returned if the method takes none. Empty: the default edit's.
    """
    for method in card.methods:
        use = FAMILIES[card.family].methods.get(method)
        if use is None or not {"target", "alpha"} <= use.takes:
            continue
        if metric and "metric" not in use.takes:
            return None
        alpha = card.default_alpha.get(method, use.default_alpha) or 1.0
        steps = min(STEPS, max_steps) if "num_steps" in use.takes else None
        fields = _as_calibrated(card, method, use)
        if metric:
            fields["metric"] = metric
        return PlannedEdit(card, layer, card.labels[0], method, abs(alpha), steps, fields)
    return None


def _as_calibrated(card: Card, method: str, use: Use) -> dict[str, Any]:
    """The default edit's metric and loss, and null for what would blur an effect. The unit is raw, since not
    every layer has a scale."""
    if not card.default_edit or method != card.methods[0]:
        return {}
    kept = ("metric", "loss", "step_decay")
    fields: dict[str, Any] = {name: value for name, value in card.default_edit.items() if name in kept}
    fields |= {name: None for name in ("until", "cap", "fade") if name in card.default_edit}
    return fields | ({"unit": "raw"} if "unit" in use.takes else {})
