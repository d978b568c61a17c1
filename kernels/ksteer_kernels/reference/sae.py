"""Sparse-autoencoder features: clamping some of them, with the autoencoder's error kept."""

from __future__ import annotations

import torch
from torch import Tensor


def features(x: Tensor, w_enc: Tensor, b_enc: Tensor, threshold: Tensor) -> Tensor:
    """Activations f [n, k]: z where z > threshold, else 0, with z = x w_enc^T + b_enc; ReLU: threshold 0."""
    z = x @ w_enc.T + b_enc
    return torch.where(z > threshold, z, torch.zeros_like(z))


def clamp(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, threshold: Tensor, w_dec: Tensor, chosen: Tensor, values: Tensor
) -> Tensor:
    """x + sum over chosen features of (value - f_k(x)) w_dec[k].

    The same as: encode with the whole dictionary, set the chosen features, decode, add x's reconstruction
    error. w_enc, w_dec [k, d]; b_enc, threshold, values [k]; chosen [k] bool.
    """
    f = features(x, w_enc, b_enc, threshold)
    change = torch.where(chosen, values - f, torch.zeros_like(f))
    return x + change @ w_dec
