"""Random probes that steer hard enough to see."""

from __future__ import annotations

from typing import Any

import torch

from ksteer_vllm import ModelIdentity, Probe, ProbeMetadata
from testbed.models import HIDDEN_SIZE, NUM_LAYERS

LABELS = ("warm", "cold", "dry")


def random_probe(
    *,
    layer: int = 1,
    width: int = 48,
    labels: tuple[str, ...] = LABELS,
    model_type: str = "llama",
    hidden_size: int = HIDDEN_SIZE,
    num_layers: int = NUM_LAYERS,
    seed: int = 0,
    **metadata: Any,
) -> Probe:
    """A probe with random weights, random input statistics and two hidden layers of different width."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    h1, h2 = width, max(1, width - 5)
    identity = ModelIdentity(
        name="tiny", model_type=model_type, hidden_size=hidden_size, num_layers=num_layers
    )
    tensors = {
        "w1": normal(h1, hidden_size, scale=hidden_size**-0.5),
        "b1": normal(h1, scale=0.3),
        "w2": normal(h2, h1, scale=h1**-0.5),
        "b2": normal(h2, scale=0.3),
        "w3": normal(len(labels), h2, scale=h2**-0.5),
        "b3": normal(len(labels), scale=0.3),
        "input_mean": normal(hidden_size, scale=0.2),
        "input_std": normal(hidden_size).abs() * 0.3 + 0.4,
        "label_vectors": normal(len(labels), hidden_size),
    }
    return Probe(ProbeMetadata(labels=labels, layer=layer, model=identity, **metadata), tensors)
