"""k-steering 0.1.2's hook, written anew from what it does, in float64 with autograd. No code of the plugin's.

The hook sits on the output of a decoder block. In one forward pass it sees a whole batch, [B, S, d]: B padded
prompts of S positions, or one new token of each (S = 1). It runs the classifier at every position, averages
the logits over the S positions, takes mean(avoid) - mean(target) of that and one gradient step on all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Classifier:
    """Linear, ReLU, Linear, ReLU, Linear, or one Linear: (weight, bias) in order. labels: their order."""

    labels: Sequence[str]
    layers: Sequence[tuple[Tensor, Tensor]]

    def __call__(self, x: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(self.layers):
            x = torch.nn.functional.linear(torch.relu(x) if index else x, weight.double(), bias.double())
        return x


def hooked(
    output: Tensor,
    classifier: Classifier,
    *,
    target: Sequence[str],
    avoid: Sequence[str] = (),
    strength: float = 1.0,
    steps: int = 1,
    decay: float = 1.0,
) -> Tensor:
    """What the hook makes of a block's output [B, S, d] float64."""
    wanted = [classifier.labels.index(label) for label in target]
    shunned = [classifier.labels.index(label) for label in avoid]
    for step in range(steps):
        leaf = output.detach().requires_grad_()
        with torch.enable_grad():
            logits = classifier(leaf).mean(dim=1)
            loss = torch.zeros(len(output), dtype=torch.float64)
            if shunned:
                loss = loss + logits[:, shunned].mean(dim=1)
            if wanted:
                loss = loss - logits[:, wanted].mean(dim=1)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        output = leaf.detach() - strength * decay**step * gradient
    return output


def request(
    x: Tensor,
    num_prompt_tokens: int,
    classifier: Classifier,
    *,
    padded_length: int | None = None,
    **asked: Any,
) -> Tensor:
    """A request's tokens x [T, d] at one block after the hook, forward pass by forward pass: the prompt,
    padded on the left to padded_length, and then one token at a time."""
    x = x.double()
    padding = torch.zeros((padded_length or num_prompt_tokens) - num_prompt_tokens, x.shape[1]).double()
    prompt = torch.cat([padding, x[:num_prompt_tokens]])[None]
    done = [hooked(prompt, classifier, **asked)[0, len(padding) :]]
    done += [hooked(token[None, None], classifier, **asked)[0] for token in x[num_prompt_tokens:]]
    return torch.cat(done)
