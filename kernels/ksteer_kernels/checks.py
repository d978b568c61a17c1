"""What weights must satisfy to be loaded into the device tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_RANKS = {"basis": 2, "up": 2, "matrix": 2, "head": 2}
_INTEGER = ("activation", "gate_unit")
NUM_ACTIVATIONS = 4


def check_weights(
    weights: Mapping[str, Tensor], room: tuple[int, int, int], stored: torch.dtype
) -> tuple[int, int, int]:
    """True sizes (r, m, K) of weights that fit; ValueError naming the first field that does not.

    weights: the fields of `SlotWeights` that are given. room: (H, K, d) of the tables.
    stored: dtype of their basis.
    """
    for name, tensor in weights.items():
        _check_tensor(name, tensor)
    max_width, max_labels, hidden_size = room
    r = weights["basis"].shape[0]
    m = weights["matrix"].shape[0] if "matrix" in weights else 0
    k = weights["head"].shape[0] if "head" in weights else 0
    expected = {
        "basis": (r, hidden_size),
        "scale": (hidden_size,),
        "up": (r, hidden_size),
        "matrix": (m, r),
        "matrix_bias": (m,),
        "head": (k, m),
        "head_bias": (k,),
    }
    for name, tensor in weights.items():
        shape = expected.get(name, (r,))
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    for name, size, limit, what in (
        ("basis", r, max_width, "width"),
        ("matrix", m, max_width, "width"),
        ("head", k, max_labels, "number of labels"),
    ):
        if size > limit:
            raise ValueError(f"{name}: {what} {size} exceeds the table's {limit}")
    if r == 0:
        raise ValueError("basis: has no rows")
    for name in ("basis", "up"):
        if name in weights and bool((weights[name].abs() > torch.finfo(stored).max).any()):
            raise ValueError(f"{name}: holds a value too large for {stored}")
    if "scale" in weights and "up" in weights:
        raise ValueError("scale: given beside up, but a slot has one metric at most")
    if "scale" in weights and bool((weights["scale"] < 0).any()):
        raise ValueError("scale: holds a negative value, which no metric has on its diagonal")
    kinds = weights.get("activation")
    if kinds is not None and bool(((kinds < 0) | (kinds >= NUM_ACTIVATIONS)).any()):
        raise ValueError(f"activation: expected an Activation, 0..{NUM_ACTIVATIONS - 1}")
    gates = weights.get("gate_unit")
    if gates is not None and bool(((gates < -1) | (gates >= r)).any()):
        raise ValueError(f"gate_unit: expected -1 or a unit in 0..{r - 1}")
    return r, m, k


def _check_tensor(name: str, tensor: Tensor) -> None:
    rank = _RANKS.get(name, 1)
    integer = name in _INTEGER
    is_integer = not (tensor.is_floating_point() or tensor.is_complex())
    right_type = is_integer if integer else tensor.is_floating_point()
    if tensor.ndim != rank or not right_type:
        kind = "an integer" if integer else "a floating-point"
        raise ValueError(
            f"{name}: expected {kind} tensor of rank {rank}, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if not integer and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: holds a value that is not finite")
