"""LoReFT: low-rank linear subspace representation finetuning (Wu et al., arXiv 2404.03592, equation 2)."""

from __future__ import annotations

from torch import Tensor


def loreft(x: Tensor, rotation: Tensor, weight: Tensor, bias: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x + alpha R^T (W x + b - R x); rotation R [r, d] with orthonormal rows, weight W [r, d], bias b [r]."""
    return x + alpha * (x @ weight.T + bias - x @ rotation.T) @ rotation
