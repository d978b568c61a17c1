"""Affine concept editing (Marshall et al., arXiv 2411.09003) and directional ablation (arXiv 2406.11717)."""

from __future__ import annotations

from torch import Tensor


def ace(x: Tensor, direction: Tensor, negatives_mean: Tensor, *, alpha: float) -> Tensor:
    """x + r^ ((a0 . r^) + alpha |r| - r^ . x) with r^ = r / |r|, r = direction [d], a0 = negatives_mean [d].

    At alpha = 0 the r-component of x is the negatives' mean's, at alpha = 1 the positives' mean's.
    """
    length = direction.norm()
    unit = direction / length
    return x + ((negatives_mean @ unit) + alpha * length - x @ unit)[:, None] * unit


def ablate(x: Tensor, direction: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x - alpha r^ (r^ . x): at alpha = 1 the component along direction [d] is gone."""
    unit = direction / direction.norm()
    return x - alpha * (x @ unit)[:, None] * unit
