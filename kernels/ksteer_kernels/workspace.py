"""Persistent scratch memory for the Triton kernels; captured CUDA graphs keep its addresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_SPLITS = 8
"""Parts of hidden_size that shrink sums apart, whatever the batch: the order of the sum never changes."""

SPLIT_TOKENS = 1024
"""Up to this many tokens every part gets a program of its own, above it one program does all in turn."""


@dataclass
class Workspace:
    """Scratch for one steering operation at a time. Contents are undefined between operations.

    partial: flat float32, room for num_partials(T) * T * width sums of shrink for any T up to max_tokens.
    pre_activation: [max_tokens, width] float32, z1.
    upper: [max_tokens, width] float32, the readout masked by the second hidden layer.
    step: [max_tokens, width] float32, one step's hidden gradient times its size.
    coefficients: [max_tokens, width] float32, s: what expand multiplies the first layer's rows by.
    """

    partial: Tensor
    pre_activation: Tensor
    upper: Tensor
    step: Tensor
    coefficients: Tensor

    @classmethod
    def allocate(cls, max_tokens: int, width: int, device: torch.device | str) -> Workspace:
        """Room for max_tokens tokens; width: max(H, K) of the tables. ValueError on a size below 1."""
        if max_tokens < 1 or width < 1:
            raise ValueError(f"max_tokens and width must be at least 1, got {max_tokens} and {width}")
        sums = max(max_tokens, NUM_SPLITS * min(max_tokens, SPLIT_TOKENS))

        def scratch() -> Tensor:
            return torch.empty((max_tokens, width), dtype=torch.float32, device=device)

        return cls(
            partial=torch.empty(sums * width, dtype=torch.float32, device=device),
            pre_activation=scratch(),
            upper=scratch(),
            step=scratch(),
            coefficients=scratch(),
        )

    @property
    def max_tokens(self) -> int:
        return self.coefficients.shape[0]

    @property
    def width(self) -> int:
        return self.coefficients.shape[1]

    @property
    def nbytes(self) -> int:
        """Device bytes held."""
        return sum(
            t.nbytes for t in (self.partial, self.pre_activation, self.upper, self.step, self.coefficients)
        )

    def partial_sums(self, num_tokens: int) -> Tensor:
        """View [num_partials(T), T, width] of the partial sums for a batch of num_tokens tokens."""
        count = num_partials(num_tokens)
        return self.partial[: count * num_tokens * self.width].view(count, num_tokens, self.width)

    def require(self, num_tokens: int, width: int) -> None:
        """Raise ValueError unless num_tokens tokens of this width fit."""
        if num_tokens > self.max_tokens or width > self.width:
            raise ValueError(
                f"workspace holds {self.max_tokens} tokens of width {self.width}, "
                f"need {num_tokens} of width {width}"
            )


def num_partials(num_tokens: int) -> int:
    """How many partial sums shrink leaves for hidden to add up, in order."""
    return NUM_SPLITS if num_tokens <= SPLIT_TOKENS else 1
