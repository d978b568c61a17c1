"""Persistent scratch memory for the Triton kernels; captured CUDA graphs keep its addresses."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

NUM_SPLITS = 8
"""Parts of hidden_size that shrink sums apart, whatever the batch: the order of the sum never changes."""

DROPPED = -2
"""In place of a number of steps: the activations or the edit were not finite, so the token was not edited."""

SPLIT_TOKENS = 1024
"""Up to this many tokens every part gets a program of its own, above it one program does all in turn."""


@dataclass
class Workspace:
    """Scratch for one stage of one layer at a time. Contents are undefined between operations, but for
    is_open, which a CONDITION writes and the next stage of the same layer reads, and dropped.

    Attributes:
        partial: flat float32, room for num_partials(T) * T * width sums of shrink for any T up to max_tokens.
        square: flat float32, room for num_partials(T) * T sums of |x|^2.
        pre_activation: [max_tokens, width] float32, z1.
        upper: [max_tokens, width] float32, the readout masked by the second hidden layer.
        step: [max_tokens, width] float32, one step's hidden gradient times its size.
        logits: [max_tokens, num_labels] float32, logits and what the loss makes of them.
        coefficients: [max_tokens, width] float32, s: what expand multiplies the rows U by.
        keep: [max_tokens] float32, x' = keep * (x - U^T s).
        is_open: [max_tokens] int32, 1 where the next stage of a row is open.
        steps: [max_tokens] int32, gradient steps taken, 0 where a condition shut the token out, DROPPED where
            the edit was dropped, else -1.
        dropped: [1] int64, edits dropped since the workspace was made; operations only add to it.
    """

    partial: Tensor
    square: Tensor
    pre_activation: Tensor
    upper: Tensor
    step: Tensor
    logits: Tensor
    coefficients: Tensor
    keep: Tensor
    is_open: Tensor
    steps: Tensor
    dropped: Tensor

    @classmethod
    def allocate(
        cls, max_tokens: int, width: int, device: torch.device | str, num_labels: int = 1
    ) -> Workspace:
        """Allocate scratch.

        Args:
            max_tokens: Tokens of the largest step, padding included.
            width: H, as the tables'.
            device: Where kernels run.
            num_labels: K, as the tables'.

        Raises:
            ValueError: A size is below 1, or larger than the kernels can address.
        """
        for name, size in (("max_tokens", max_tokens), ("width", width), ("num_labels", num_labels)):
            if size < 1:
                raise ValueError(f"{name}: must be at least 1, got {size}")
        sums = max(max_tokens, NUM_SPLITS * min(max_tokens, SPLIT_TOKENS))
        if (
            max(sums * width, max_tokens * num_labels) >= 2**31
        ):  # offsets in it are 32-bit: registers are scarce
            raise ValueError(
                f"max_tokens: {max_tokens} at width {width} is more than the kernels can address"
            )

        def scratch(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        def counts() -> Tensor:
            return torch.zeros(max_tokens, dtype=torch.int32, device=device)

        return cls(
            partial=scratch(sums * width),
            square=scratch(sums),
            pre_activation=scratch(max_tokens, width),
            upper=scratch(max_tokens, width),
            step=scratch(max_tokens, width),
            logits=scratch(max_tokens, num_labels),
            coefficients=scratch(max_tokens, width),
            keep=scratch(max_tokens),
            is_open=counts(),
            steps=counts(),
            dropped=torch.zeros(1, dtype=torch.int64, device=device),
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
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def partial_sums(self, num_tokens: int) -> Tensor:
        """View [num_partials(T), T, width] of the partial sums of W1 x for a batch of num_tokens tokens."""
        count = num_partials(num_tokens)
        return self.partial[: count * num_tokens * self.width].view(count, num_tokens, self.width)

    def square_sums(self, num_tokens: int) -> Tensor:
        """View [num_partials(T), T] of the partial sums of |x|^2 for a batch of num_tokens tokens."""
        count = num_partials(num_tokens)
        return self.square[: count * num_tokens].view(count, num_tokens)

    def require(self, num_tokens: int, width: int, num_labels: int) -> None:
        """Raise ValueError unless num_tokens tokens of this width with so many labels fit."""
        room, need = (self.max_tokens, self.width, self.logits.shape[1]), (num_tokens, width, num_labels)
        if any(n > limit for n, limit in zip(need, room, strict=True)):
            raise ValueError(
                "workspace holds {} tokens of width {} with {} labels, ".format(*room)
                + "need {} tokens of width {} with {} labels".format(*need)
            )


def num_partials(num_tokens: int) -> int:
    """How many partial sums shrink leaves for hidden to add up, in order."""
    return NUM_SPLITS if num_tokens <= SPLIT_TOKENS else 1
