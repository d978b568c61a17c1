"""A training aid: make the demo model keep the tones of its reply in its residual stream, and follow them.

A large model carries the tone of what it is writing along at every token.  A model this small, left
alone, looks the tone up only where a sentence begins, so that no direction means the same thing at every
position.  Two terms during training change that.  Both act at the output of one layer, on the positions
whose next token belongs to the reply, with one learned direction per tone: the tones must be readable
from the residual stream, and in a share of the chats without an instruction the directions of the
reply's tones are added to it.  None of this is part of the saved model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ksteer_vllm.demo.lexicon import TONES


class ToneCode(nn.Module):
    """One direction per tone, to read the tones from the residual stream and to write them into it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(len(TONES), hidden_size))
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(len(TONES)))
        self.readout_loss = torch.zeros(())

    def read(self, hidden: torch.Tensor) -> torch.Tensor:
        """One logit per tone from a residual stream of any norm."""
        normed = hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return self.scale * normed @ nn.functional.normalize(self.directions, dim=-1).T + self.bias

    def write(self, hidden: torch.Tensor, tones: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Add the directions of a row's tones, and subtract a little of the others, with random strength.

        A little noise goes along, so that the model learns to bear directions that are not quite its own.
        """
        norm = hidden.detach().norm(dim=-1, keepdim=True)
        strength = torch.empty(len(tones), 1).uniform_(0.2, 0.9) * rows[:, None]
        against = torch.empty(len(tones), 1).uniform_(0.0, 0.3)
        code = strength * (tones - against * (1 - tones)) @ nn.functional.normalize(self.directions, dim=-1)
        noise = 0.2 * rows[:, None, None] * torch.randn_like(hidden) * hidden.shape[-1] ** -0.5
        return hidden + norm * (code[:, None] + noise)

    @contextmanager
    def applied(
        self, layer: nn.Module, replies: torch.Tensor, tones: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[None]:
        """Act on one forward pass of ``layer``; afterwards ``readout_loss`` says how readable the tones were.

        ``replies`` marks positions of the reply, ``tones`` is 0 or 1 per chat and tone, ``rows`` is 1.0 for
        the chats to write into.
        """

        def hook(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
            wanted = tones[:, None].expand(-1, hidden.shape[1], -1)[replies]
            logits = self.read(hidden[replies])
            self.readout_loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
            return torch.where(replies[..., None], self.write(hidden, tones, rows), hidden)

        handle = layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
