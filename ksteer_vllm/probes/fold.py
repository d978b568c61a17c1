"""Classifiers of the standardised residual stream, z = (x - input_mean) / input_std, as functions of x.

Family `mlp`: f(x) = W3 relu(W2 relu(W1 z + b1) + b2) + b3. Family `linear`: f(x) = W z + b.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ksteer_kernels.reference.mlp import MLPWeights
from ksteer_vllm.spec.families import COVARIANCE_UP

__all__ = ["fold_linear", "fold_mlp", "metrics_of", "rows_in_metric"]


def fold_mlp(tensors: Mapping[str, Tensor]) -> MLPWeights:
    """The standardisation folded into the first layer.

    Args:
        tensors: those of family `mlp` at one layer; w1 [H1, d], w2 [H2, H1], w3 [K, H2], their biases,
            input_mean [d] and input_std [d].

    Returns:
        The weights on the raw residual stream, float64.
    """
    w1, b1 = _fold(tensors, "w1", "b1")
    w2, b2, w3, b3 = (tensors[name].double() for name in ("w2", "b2", "w3", "b3"))
    return MLPWeights(w1, b1, w2, b2, w3, b3)


def fold_linear(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The standardisation folded into the weights of a linear probe.

    Args:
        tensors: those of family `linear` at one layer; weight [K, d], bias [K], input_mean [d] and
            input_std [d].

    Returns:
        Weights [K, d] and bias [K] on the raw residual stream, float64.
    """
    return _fold(tensors, "weight", "bias")


def metrics_of(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The metrics, beside raw, for which a probe has statistics at one layer.

    Deviations that are all 1 were not measured. A probe fitted as another package does is left as it was.

    Args:
        settings: Those of the probe's metadata.
        tensors: Those of family `mlp` or `linear` at the layer.

    Returns:
        Names of the spec field `metric`.
    """
    if "compat" in settings:
        return ()
    varies = bool((tensors["input_std"] != 1).any())
    return (*(("variance",) if varies else ()), *(("covariance",) if COVARIANCE_UP in tensors else ()))


def rows_in_metric(rows: Tensor, tensors: Mapping[str, Tensor], metric: str) -> Tensor:
    """W M of weights W [h, d] on the raw residual stream, float64.

    A step g of the hidden units moves x by g W M: the steepest direction where lengths are sqrt(v^T M^-1 v).

    Args:
        rows: W, folded.
        tensors: Those of the probe at one layer.
        metric: raw, or one of `metrics_of`.
    """
    if metric == "raw":
        return rows
    return (
        tensors[COVARIANCE_UP].double()
        if metric == "covariance"
        else rows * tensors["input_std"].double() ** 2
    )


def _fold(tensors: Mapping[str, Tensor], weight: str, bias: str) -> tuple[Tensor, Tensor]:
    """Exactly: W' = W / input_std, b' = b - W' input_mean."""
    folded = tensors[weight].double() / tensors["input_std"].double()
    return folded, tensors[bias].double() - folded @ tensors["input_mean"].double()
