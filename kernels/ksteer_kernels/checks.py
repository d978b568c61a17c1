"""What a probe must satisfy to be loaded into the device tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_RANKS = {"w1": 2, "b1": 1, "w2": 2, "b2": 1, "vectors": 2}


def check_weights(
    weights: Mapping[str, Tensor], room: Sequence[int], max_labels: int, stored: torch.dtype
) -> tuple[int, int]:
    """Widths (h1, h2) of a probe that fits; ValueError naming the first field that does not.

    weights: w1 [h1, d], b1 [h1], w2 [h2, h1], b2 [h2] and perhaps vectors [k, d].
    room: (H, d) of the tables; stored: their dtype of w1 and vectors.
    """
    for name, tensor in weights.items():
        if tensor.ndim != _RANKS[name] or not tensor.is_floating_point():
            raise ValueError(
                f"{name}: expected a floating-point tensor of rank {_RANKS[name]}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name}: holds a value that is not finite")
    max_width, hidden_size = room
    h1, h2 = weights["w1"].shape[0], weights["w2"].shape[0]
    expected = {"w1": (h1, hidden_size), "b1": (h1,), "w2": (h2, h1), "b2": (h2,)}
    if "vectors" in weights:
        expected["vectors"] = (weights["vectors"].shape[0], hidden_size)
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(weights[name].shape)}")
    for name, size, limit, what in (
        ("w1", h1, max_width, "width"),
        ("w2", h2, max_width, "width"),
        ("vectors", expected.get("vectors", (0,))[0], max_labels, "number of labels"),
    ):
        if size > limit:
            raise ValueError(f"{name}: {what} {size} exceeds the table's {limit}")
    for name in ("w1", "vectors"):
        if name in weights and bool((weights[name].abs() > torch.finfo(stored).max).any()):
            raise ValueError(f"{name}: holds a value too large for {stored}")
    return h1, h2
