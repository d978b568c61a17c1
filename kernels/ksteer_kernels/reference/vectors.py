"""Constant label vectors: CAA (Rimsky et al., arXiv 2312.06681), ActAdd (Turner et al., arXiv 2308.10248);
random controls of them."""

from __future__ import annotations

import torch
from torch import Tensor


def add(x: Tensor, vectors: Tensor, label_weights: Tensor, *, alpha: float) -> Tensor:
    """x + alpha * sum_k c_k vectors[k]; vectors [K, d], c [K]: + on target labels, - on avoid labels."""
    return x + alpha * (label_weights @ vectors)


CONTROL_SEED = 0x6B737465
"""Far from the small seeds of fits: the control of a random probe must not be the probe again."""


def matched_random(vectors: Tensor, seed: int = CONTROL_SEED) -> Tensor:
    """The random control: directions that know nothing of the labels, and move x exactly as far.

    V^T = E R (QR); V' = R^T E' with a random orthonormal E' [min(K, d), d], so V' V'^T = V V^T and every sum
    of labels has the length it has with the true vectors.

    Args:
        vectors: [K, d], any float dtype.
        seed: Of E'.

    Returns:
        [K, d] float64, the same for the same seed and shape.
    """
    generator = torch.Generator().manual_seed(seed)
    _, upper = torch.linalg.qr(vectors.double().T)
    noise = torch.randn(vectors.shape[1], upper.shape[0], generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(noise)
    basis = basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)  # uniform over all frames
    return upper.T @ basis.T
