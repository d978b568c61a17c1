"""What steering in the metric of the data needs: the shrunk covariance, and the lengths it gives vectors.

x' = x - alpha M grad L is steepest descent where lengths are sqrt(v^T M^-1 v). M is diag(input_std^2) for the
metric `variance` and Sigma for `covariance`. Sigma is never stored: an edit needs `up` = W Sigma alone, W
being the first layer on the raw residual stream.

Sigma is shrunk towards its own diagonal: with z = (x - mean) / std, R the correlations and s the shrinkage,

    Sigma = diag(std) ((1 - s) R + s 1) diag(std),

so that a change of units of any coordinate changes Sigma as it should, and s = 1 is the metric `variance`.
s is the oracle approximating shrinkage of R (OAS, Chen et al. 2010, arXiv 0907.4698, as scikit-learn has it)
with the number of rows as the number of samples: positions of one reply are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.probes.metadata import Metric
from ksteer_vllm.spec.families import COVARIANCE_UP

__all__ = ["LARGEST_COVARIANCE", "MetricStatistics", "metric_statistics", "shrinkage", "shrunk_correlations"]

LARGEST_COVARIANCE: Final = 4096
"""Hidden size up to which the covariance is estimated: d^2 float64 and N d^2 multiplications."""


@dataclass(frozen=True)
class MetricStatistics:
    """Of the training vectors of one layer.

    Attributes:
        std: [d] float32, the standard deviations.
        correlations: [d, d] float64, shrunk; None where the hidden size is too large.
        scale: Metric -> mean over vectors of sqrt((x - mean)^T M^-1 (x - mean)).
        training: What `probe.json` says of the estimate.
    """

    std: Tensor
    correlations: Tensor | None
    scale: Mapping[Metric, float]
    training: Mapping[str, Any]

    def tensors(self, weight: Tensor) -> dict[str, Tensor]:
        """A probe's `covariance_up`, W Sigma [h, d] float32; empty without a covariance.

        weight: [h, d], the first layer on z; W is weight / std.
        """
        if self.correlations is None:
            return {}
        up = weight.detach().double() @ self.correlations * self.std.double()
        return {COVARIANCE_UP: up.float()}

    def at(self, layer: int) -> dict[Metric, dict[int, float]]:
        """`metric_scale` of a probe's metadata."""
        return {name: {layer: value} for name, value in self.scale.items()}


def metric_statistics(x: Tensor | Stream, mean: Tensor, std: Tensor, rows: int) -> MetricStatistics:
    """The statistics of both metrics, sums in float64, read in blocks.

    Args:
        x: Training vectors, [N, d].
        mean, std: [d], their mean and standard deviations, see `statistics.standardisation`.
        rows: How many rows they come from.
    """
    stream = Stream.of(x).standardised(mean, std)
    scale: dict[Metric, float] = {"variance": stream.map(lambda z: z.double().norm(dim=1)).mean().item()}
    if stream.hidden_size > LARGEST_COVARIANCE:
        why = f"left out: hidden size {stream.hidden_size} is above {LARGEST_COVARIANCE}"
        return MetricStatistics(std, None, _positive(scale), {"covariance": why})
    correlations, share = shrunk_correlations(stream, rows)
    try:
        lower = torch.linalg.cholesky(correlations)
    except torch.linalg.LinAlgError:
        why = f"left out: the covariance is singular ({rows} rows, shrinkage {share:.3g})"
        return MetricStatistics(std, None, _positive(scale), {"covariance": why})
    scale["covariance"] = stream.map(lambda z: _lengths(lower, z)).mean().item()
    training = {"shrinkage": share, "samples": rows, "estimator": "OAS, towards the diagonal"}
    return MetricStatistics(std, correlations, _positive(scale), {"covariance": training})


def shrunk_correlations(z: Tensor | Stream, samples: int) -> tuple[Tensor, float]:
    """(1 - s) R + s 1, [d, d] float64, and s; z [N, d], standardised, of so many independent samples.

    A coordinate that never varies is correlated with none.
    """
    stream = Stream.of(z)
    total = torch.zeros(stream.hidden_size, stream.hidden_size, dtype=torch.float64)
    for _, block in stream.blocks():
        wide = block.double()
        total.addmm_(wide.T, wide)
    found = total / len(stream)
    found.fill_diagonal_(1.0)
    share = shrinkage(found, samples)
    found *= 1 - share
    found.fill_diagonal_(1.0)
    return found, share


def shrinkage(correlations: Tensor, samples: int) -> float:
    """OAS of [d, d] correlations, 0 to 1: (mean R_ij^2 + 1) / ((samples + 1) (mean R_ij^2 - 1 / d))."""
    square = correlations.square().mean().item()
    beyond = (samples + 1) * (square - 1 / len(correlations))
    return min((square + 1) / beyond, 1.0) if beyond > 0 else 1.0


def _lengths(lower: Tensor, z: Tensor) -> Tensor:
    """sqrt(z^T (L L^T)^-1 z) of each, [n] float64; lower [d, d], z [n, d]."""
    return torch.linalg.solve_triangular(lower, z.double().T, upper=False).norm(dim=0)


def _positive(scale: Mapping[Metric, float]) -> dict[Metric, float]:
    """Without lengths that are 0: of vectors that are all alike."""
    return {name: value for name, value in scale.items() if math.isfinite(value) and value > 0}
