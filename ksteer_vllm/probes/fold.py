"""The MLP of family `mlp` as a function of the raw residual stream.

logits f(x) = W3 relu(W2 relu(W1 z + b1) + b2) + b3,   z = (x - input_mean) / input_std
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ksteer_kernels.reference.mlp import MLPWeights

__all__ = ["fold"]


def fold(tensors: Mapping[str, Tensor]) -> MLPWeights:
    """The standardisation folded into the first layer, exactly: W1' = W1 / sigma, b1' = b1 - W1' mu.

    Args:
        tensors: those of family `mlp` at one layer; w1 [H1, d], w2 [H2, H1], w3 [K, H2], their biases,
            input_mean [d] and input_std [d].

    Returns:
        The weights on the raw residual stream, float64.
    """
    f64 = {name: tensor.double() for name, tensor in tensors.items()}
    w1 = f64["w1"] / f64["input_std"]
    b1 = f64["b1"] - w1 @ f64["input_mean"]
    return MLPWeights(w1, b1, f64["w2"], f64["b2"], f64["w3"], f64["b3"])
