"""A gated vector (MAT-Steer; Nguyen et al., arXiv 2502.12446)."""

from __future__ import annotations

import torch
from torch import Tensor


def mat_steer(
    x: Tensor, vector: Tensor, gate_weight: Tensor, gate_bias: Tensor, *, alpha: float = 1.0
) -> Tensor:
    """x + alpha g(x) v, g = sigmoid(gate_weight . x + gate_bias); v, gate_weight [d], gate_bias a scalar."""
    gate = torch.sigmoid(x @ gate_weight + gate_bias)
    return x + alpha * gate[:, None] * vector
