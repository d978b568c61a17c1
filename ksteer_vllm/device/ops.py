"""The one custom op, opaque to torch.compile: steer the output of one decoder layer, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ksteer_vllm.device.state import SteeringState

__all__ = ["register_ops"]

_library: torch.library.Library | None = None
_current_state: Callable[[], SteeringState | None]


def register_ops(current_state: Callable[[], SteeringState | None]) -> None:
    """Define `torch.ops.ksteer.steer_(hidden, residual, layer)`; calling again is harmless.

    hidden [T, d] or [1, T, d] is edited in place; residual, of the same shape or None, is read; layer is
    the decoder block's index.
    current_state returns the state of the engine whose forward pass is running, or None. It is asked at
    run time, so the compiled graph holds nothing of an engine but the layer index.
    """
    global _library, _current_state
    _current_state = current_state
    if _library is not None:
        return
    _library = torch.library.Library("ksteer", "DEF")
    _library.define("steer_(Tensor(a!) hidden, Tensor? residual, int layer) -> ()")
    for key in ("CPU", "CUDA"):
        _library.impl("steer_", _steer, key)
    torch.library.register_fake("ksteer::steer_", _nothing, lib=_library)


def _steer(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    state = _current_state()
    if state is not None:
        state.at_layer(_by_token(hidden), None if residual is None else _by_token(residual), layer)


def _by_token(activations: Tensor) -> Tensor:
    """[T, d], sharing memory; vLLM's transformers backend (OLMo 2) runs with a batch dimension of one."""
    return activations if activations.dim() == 2 else activations.view(-1, activations.shape[-1])


def _nothing(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    return None
