"""The settings of a group's tokens, gathered from the row tables."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ksteer_kernels.settings import Flag, Loss, RowTables


@dataclass(frozen=True)
class TokenSettings:
    """One value per token: the fields of RowTables as [n] tensors, readout and scale [n, H],
    label_weights [n, K]. gain: [n] or None; what is left of the strength after fading, 1 without."""

    loss: Tensor
    flags: Tensor
    num_steps: Tensor
    strength: Tensor
    decay: Tensor
    margin: Tensor
    until_target: Tensor
    until_avoid: Tensor
    cap: Tensor
    readout: Tensor
    scale: Tensor
    label_weights: Tensor
    gain: Tensor | None = None

    @classmethod
    def of(cls, rows: RowTables, entry: int, row: Tensor, gain: Tensor | None = None) -> TokenSettings:
        """The settings at one entry of the tokens with these rows [n]; gain: [n] or None."""
        names = [f.name for f in fields(cls) if f.name != "gain"]
        return cls(**{name: getattr(rows, name)[entry, row] for name in names}, gain=gain)

    @property
    def faded_strength(self) -> Tensor:
        """[n]: the strength, times what fading has left of it."""
        return self.strength if self.gain is None else self.strength * self.gain

    def has(self, flag: Flag) -> Tensor:
        """[n] bool: whether a token's row has this flag."""
        return (self.flags & int(flag)) != 0

    @property
    def has_until(self) -> Tensor:
        """[n] bool: whether a token stops once its labels are where they should be."""
        return torch.isfinite(self.until_target) | torch.isfinite(self.until_avoid)

    @property
    def needs_logits(self) -> bool:
        """Whether any token's steps depend on its logits."""
        return bool((self.loss != int(Loss.MEAN)).any() | self.has_until.any())
