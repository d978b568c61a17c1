"""A gated rotation within a plane, after ORBIT (Ghasemi et al., arXiv 2606.22357)."""

from __future__ import annotations

import torch
from torch import Tensor


def orbit(
    x: Tensor, plane: Tensor, angle: Tensor, gate_weight: Tensor, gate_bias: Tensor, *, alpha: float = 1.0
) -> Tensor:
    """x + g(x) (Rot(alpha angle) - I) P x, g = sigmoid(gate_weight . x + gate_bias).

    plane [2, d] with orthonormal rows u, w; Rot turns u towards w; angle, gate_bias scalars; gate_weight [d].
    With the gate open (g = 1) the norm of x is kept.
    """
    coordinates = x @ plane.T
    cosine, sine = torch.cos(alpha * angle), torch.sin(alpha * angle)
    turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    gate = torch.sigmoid(x @ gate_weight + gate_bias)
    return x + gate[:, None] * (coordinates @ turn.T - coordinates) @ plane
