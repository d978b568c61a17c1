"""A steered decoder layer: the original class, then the op.

Swapping a layer's class for a subclass keeps parameter names, isinstance checks and weight reload, and
torch.compile traces it like any other layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["attach", "is_attached"]


class SteeredLayer:
    """Mixed in before a decoder-layer class. Reads hidden + residual, writes into hidden only."""

    ksteer_layer: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if isinstance(output, Tensor):  # OLMo 2, GPT-2, GPT-NeoX: the residual stream itself
            torch.ops.ksteer.steer_(output, None, self.ksteer_layer)
            return output
        hidden = output[0]
        residual = output[1] if len(output) > 1 and isinstance(output[1], Tensor) else None
        torch.ops.ksteer.steer_(hidden, residual, self.ksteer_layer)
        return output


_steered_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _steered_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    if layer_class not in _steered_classes:
        name = f"Steered{layer_class.__name__}"
        namespace = {"__module__": layer_class.__module__}
        _steered_classes[layer_class] = type(name, (SteeredLayer, layer_class), namespace)
    return _steered_classes[layer_class]


def attach(layer: nn.Module, index: int) -> None:
    """Make this decoder layer (0-based block `index`) call the steering op on its output."""
    if not is_attached(layer):
        layer.__class__ = _steered_class(type(layer))
    layer.ksteer_layer = index  # type: ignore[assignment]


def is_attached(layer: nn.Module) -> bool:
    return isinstance(layer, SteeredLayer)
