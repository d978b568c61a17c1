"""The environment of `benchmarks.steering_clear`: inputs of eight attributes, a residual MLP reads them.

An input has one block of 8 numbers per attribute: the anchor of the attribute's value, a fixed random unit
vector of R^8, plus Gaussian noise. The classifier embeds the 64 numbers in a residual stream narrower than
that, so attributes share directions; residual blocks, x + W2 relu(W1 x), follow, and a linear head gives
8 x 8 logits. It is trained here to read every attribute, then frozen. Steering edits the stream between two
blocks. Depth, widths, noise and the steered block are choices of this benchmark, see `ToyPlan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["Classifier", "Toy", "ToyPlan", "make_toy"]


class ToyPlan(BaseModel):
    """The environment and the training of its classifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attributes: Annotated[int, Field(ge=1)] = 8
    values: Annotated[int, Field(ge=2)] = 8
    block: Annotated[int, Field(ge=1, description="numbers of the input per attribute")] = 8
    noise: Annotated[float, Field(ge=0, description="deviation of each number; anchors have length 1")] = 0.1
    hidden_size: Annotated[int, Field(ge=1)] = 24
    width: Annotated[int, Field(ge=1, description="of a residual block")] = 128
    blocks: Annotated[int, Field(ge=2)] = 4
    layer: Annotated[int, Field(ge=0, description="the residual block whose output is steered")] = 1
    steps: Annotated[int, Field(ge=1, description="of AdamW, learning rate 2e-3 falling to 0")] = 2000
    batch_size: Annotated[int, Field(ge=1)] = 256


class Classifier(nn.Module):
    """Inputs [n, attributes * block] to logits [n, attributes, values], in two halves around the edit."""

    def __init__(self, plan: ToyPlan) -> None:
        super().__init__()
        size = plan.hidden_size
        self.shape = (plan.attributes, plan.values)
        self.layer = plan.layer
        self.embed = nn.Linear(plan.attributes * plan.block, size)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(size, plan.width), nn.ReLU(), nn.Linear(plan.width, size))
            for _ in range(plan.blocks)
        )
        self.head = nn.Linear(size, plan.attributes * plan.values)

    def stream(self, inputs: Tensor) -> Tensor:
        """x [n, hidden_size]: the residual stream where it is steered."""
        x = self.embed(inputs)
        for block in self.blocks[: self.layer + 1]:
            x = x + block(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """What is read from a stream: [n, attributes, values]."""
        for block in self.blocks[self.layer + 1 :]:
            x = x + block(x)
        return self.head(x).view(-1, *self.shape)


@dataclass(frozen=True)
class Toy:
    """The environment with its frozen classifier.

    anchors: [attributes, values, block], of length 1. accuracy: of the classifier on fresh inputs.
    """

    plan: ToyPlan
    anchors: Tensor
    classifier: Classifier
    accuracy: float

    def values(self, count: int, generator: torch.Generator) -> Tensor:
        """Values drawn at random, [count, attributes] int64."""
        return torch.randint(self.plan.values, (count, self.plan.attributes), generator=generator)

    def inputs(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs that show these values, with fresh noise: [n, attributes * block]."""
        return _inputs(self.anchors, values, self.plan.noise, generator)

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """The values read from a stream x [n, hidden_size]: [n, attributes] int64."""
        return self.classifier.logits(x.float()).argmax(-1)


def make_toy(plan: ToyPlan, seed: int) -> Toy:
    """Draw the anchors and train the classifier; the same plan and seed give the same environment."""
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(plan.attributes, plan.values, plan.block, generator=generator)
    anchors = anchors / anchors.norm(dim=-1, keepdim=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = Classifier(plan)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps)

    def batch(count: int) -> tuple[Tensor, Tensor]:
        values = torch.randint(plan.values, (count, plan.attributes), generator=generator)
        return _inputs(anchors, values, plan.noise, generator), values

    for _ in range(plan.steps):
        inputs, values = batch(plan.batch_size)
        logits = classifier.logits(classifier.stream(inputs))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(cross_entropy(logits.flatten(0, 1), values.flatten()))
        optimizer.step()
        schedule.step()
    classifier.requires_grad_(False)
    inputs, values = batch(4096)
    read = classifier.logits(classifier.stream(inputs)).argmax(-1)
    return Toy(plan, anchors, classifier, (read == values).double().mean().item())


def _inputs(anchors: Tensor, values: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    shown = anchors[torch.arange(anchors.shape[0]), values]
    return (shown + noise * torch.randn(shown.shape, generator=generator)).flatten(1)
