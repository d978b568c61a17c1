"""Constant label vectors: CAA (Rimsky et al., arXiv 2312.06681), ActAdd (Turner et al., arXiv 2308.10248)."""

from __future__ import annotations

from torch import Tensor


def add(x: Tensor, vectors: Tensor, label_weights: Tensor, *, alpha: float) -> Tensor:
    """x + alpha * sum_k c_k vectors[k]; vectors [K, d], c [K]: + on target labels, - on avoid labels."""
    return x + alpha * (label_weights @ vectors)
