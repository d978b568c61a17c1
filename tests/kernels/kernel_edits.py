"""What a row of a kernel test asks for, and the tables' slots it may use.

The truth about an edit is `ksteer_kernels.reference` in float64, on the weights as the tables store them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import Flag, ProbeTables, RowSettings, SlotWeights
from ksteer_kernels.reference import bounds
from ksteer_kernels.reference.mlp import MLPWeights

INF = float("inf")


@dataclass(frozen=True)
class Edit:
    """What one row does in one stage.

    truth: (x [n, d] float64, gain) -> (x', steps [n] or None). opens: for a CONDITION alone, x -> [n] bool.
    probe: of a slot that has logits.
    """

    settings: RowSettings
    truth: Callable[[Tensor, float], tuple[Tensor, Tensor | None]] | None = None
    opens: Callable[[Tensor], Tensor] | None = None
    probe: MLPWeights | None = None

    def bounded(self, cap: float = INF, preserve: bool = False) -> Edit:
        """The same edit with a cap, with its norm preserved."""
        inner = self.truth
        assert inner is not None

        def truth(x: Tensor, gain: float) -> tuple[Tensor, Tensor | None]:
            edited, steps = inner(x, gain)
            edited = bounds.cap(x, edited, cap)
            return (bounds.preserve_norm(x, edited) if preserve else edited), steps

        flags = self.settings.flags | (Flag.PRESERVE_NORM if preserve else 0)
        return replace(self, settings=replace(self.settings, cap=cap, flags=flags), truth=truth)

    def flagged(self, flags: Flag) -> Edit:
        return replace(self, settings=replace(self.settings, flags=self.settings.flags | flags))


@dataclass
class Maker:
    """Loads slots of random weights, of ordinary scale, one after the other; slot 0 stays empty."""

    probes: ProbeTables
    num_labels: int
    generator: torch.Generator
    max_steps: int = 8
    loaded: dict[int, SlotWeights] = field(default_factory=dict)
    made: dict[object, Any] = field(default_factory=dict)

    @property
    def hidden_size(self) -> int:
        return self.probes.hidden_size

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    def directions(self, count: int) -> Tensor:
        """[count, d] float32 as the table would store them, of length about 1."""
        return (
            self.normal(count, self.hidden_size, scale=self.hidden_size**-0.5)
            .to(self.probes.basis.dtype)
            .float()
        )

    def units(self, count: int) -> Tensor:
        """[count, d] of length 1 to the bit in every dtype: 16 entries of 1/4 and -1/4."""
        rows = torch.zeros(count, self.hidden_size)
        for row in rows:
            chosen = torch.randperm(self.hidden_size, generator=self.generator)[:16]
            row[chosen] = torch.where(self.normal(16) > 0, 0.25, -0.25)
        return rows

    def load(self, weights: SlotWeights) -> int:
        slot = sum(loaded.num_slots for loaded in self.loaded.values()) + 1
        self.reload(slot, weights)
        self.loaded[slot] = weights
        return slot

    def reload(self, slot: int, weights: SlotWeights) -> None:
        """Load a slot; rows `up` take the next one, too."""
        self.probes.load(slot, weights, None if weights.up is None else slot + 1)

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What make returned at the first call with this key: methods that can share a slot do."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def label_weights(self, targets: tuple[int, ...], avoids: tuple[int, ...]) -> Tensor:
        """c [K], uneven on both sides; labels are taken modulo K, a target that is an avoid, too, wins."""
        c = torch.zeros(self.num_labels)
        for sign, labels in ((1.0, avoids), (-1.0, targets)):
            for place, label in enumerate(labels, start=1):
                c[label % self.num_labels] = sign * 2 * place / (len(labels) * (len(labels) + 1))
        return c


def faded(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], tuple[Tensor, None]]:
    """The truth of an edit whose whole change fades."""
    return lambda x, gain: (x + gain * (change(x) - x), None)


def weighted(
    changes: list[tuple[float, Callable[[Tensor], Tensor]]],
) -> Callable[[Tensor, float], tuple[Tensor, None]]:
    """The truth of several labels' edits: the sum of their changes by weight."""

    def total(x: Tensor) -> Tensor:
        return x + sum((weight * (change(x) - x) for weight, change in changes), torch.zeros_like(x))

    return faded(total)
