"""Means, deviations and differences of recorded vectors, read once in blocks; sums are float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.stream import Stream

__all__ = [
    "activation_scale",
    "check_directions",
    "covariance",
    "label_means",
    "label_vectors",
    "mean_of",
    "standardisation",
]


def mean_of(x: Tensor | Stream) -> Tensor:
    """Mean vector [d] float64; x [N, d]."""
    stream = Stream.of(x)
    return sum((block.double().sum(0) for _, block in stream.blocks()), torch.zeros(())) / len(stream)


def activation_scale(x: Tensor | Stream) -> float:
    """Mean over vectors of |x - mean(x)|; x [N, d]. The length that `unit: normalised` counts in."""
    stream = Stream.of(x)
    mean = mean_of(stream)
    return stream.map(lambda block: (block.double() - mean).norm(dim=1)).mean().item()


def standardisation(x: Tensor | Stream) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (at least 1e-6) of every coordinate, [d] float32 each; x [N, d]."""
    stream = Stream.of(x)
    mean = mean_of(stream)
    squares = sum(((block.double() - mean).pow(2).sum(0) for _, block in stream.blocks()), torch.zeros(()))
    return mean.float(), (squares / len(stream)).sqrt().clamp_min(1e-6).float()


def covariance(x: Tensor | Stream) -> Tensor:
    """Sum over vectors of (x - mean)(x - mean)^T, [d, d] float64; x [N, d]."""
    stream = Stream.of(x)
    mean = mean_of(stream)
    total = torch.zeros(stream.hidden_size, stream.hidden_size, dtype=torch.float64)
    for _, block in stream.blocks():
        centred = block.double() - mean
        total += centred.T @ centred
    return total


def label_means(x: Tensor | Stream, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Per label the mean of the vectors with it, and of those without.

    Args:
        x: [N, d].
        targets: [N, K] of 0 and 1; with and without must both occur.

    Returns:
        [K, d] float64, twice.
    """
    stream, shown = Stream.of(x), targets.double()
    positive = torch.zeros(targets.shape[1], stream.hidden_size, dtype=torch.float64)
    negative = torch.zeros_like(positive)
    for where, block in stream.blocks():
        x64 = block.double()
        positive += shown[where].T @ x64
        negative += (1 - shown[where]).T @ x64
    return positive / shown.sum(0)[:, None], negative / (1 - shown).sum(0)[:, None]


def label_vectors(x: Tensor | Stream, targets: Tensor) -> Tensor:
    """CAA: per label mean of positives minus mean of negatives; x [N, d], targets [N, K] -> [K, d]."""
    positive, negative = label_means(x, targets)
    return (positive - negative).float()


def check_directions(vectors: Tensor, labels: Sequence[str]) -> None:
    """Check that every label has a direction.

    Args:
        vectors: [K, d], mean differences.
        labels: K names.

    Raises:
        DataError: For a label whose mean difference is zero.
    """
    for label, length in zip(labels, vectors.norm(dim=1).tolist(), strict=True):
        if length == 0:
            raise DataError(f"labels: the mean with {label!r} equals the mean without; there is no direction")
