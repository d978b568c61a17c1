"""What a slot is loaded with: the weights of one method, as its program needs them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

from torch import Tensor


class Activation(IntEnum):
    """What a unit of an AFFINE slot does to its projection: q = act(p + bias).

    JUMPRELU: q = z where z > threshold, else 0 (Rajamanoharan et al., arXiv 2407.14435).
    """

    IDENTITY = 0
    RELU = 1
    SIGMOID = 2
    JUMPRELU = 3


@dataclass(frozen=True)
class SlotWeights:
    """What one slot holds, unpadded; any float dtype, any device; what is None is zero.

    Attributes:
        basis: [r, d]; p = basis x is all a program sees of x, and x' = x - U^T s all it does, where U is the
            basis unless the slot has a metric M: then U = basis M, given by `scale` or by `up`.
        bias: [r].
        matrix: [m, r], a probe's second layer (GRADIENT, REFLECT, CONDITION), or [r, r], the linear map of
            AFFINE.
        matrix_bias: [m], of the second layer.
        head: [K, m], a probe's last layer.
        head_bias: [K].
        activation: [r] integer, an `Activation` for each unit (AFFINE).
        threshold: [r], of JUMPRELU.
        gate_unit: [r] integer, the unit whose activation multiplies this one's; -1: not gated (AFFINE).
        scale: [d], not negative; the metric is diag(scale).
        up: [r, d], U of any other metric; not together with scale.
    """

    basis: Tensor
    bias: Tensor | None = None
    matrix: Tensor | None = None
    matrix_bias: Tensor | None = None
    head: Tensor | None = None
    head_bias: Tensor | None = None
    activation: Tensor | None = None
    threshold: Tensor | None = None
    gate_unit: Tensor | None = None
    scale: Tensor | None = None
    up: Tensor | None = None

    @property
    def width(self) -> int:
        """Room the slot needs: the larger of r and m."""
        return max(self.basis.shape[0], 0 if self.matrix is None else self.matrix.shape[0])

    @property
    def num_labels(self) -> int:
        return 0 if self.head is None else self.head.shape[0]

    @property
    def num_slots(self) -> int:
        """Slots of the tables that the weights take: rows `up` lie in one of their own."""
        return 1 if self.up is None else 2

    def given(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: tensor for name, tensor in named if tensor is not None}


def written_rows(basis: Tensor, scale: Tensor | None, up: Tensor | None) -> Tensor:
    """U [r, d] of x' = x - U^T s; the basis itself for a slot without a metric."""
    if up is not None:
        return up
    return basis if scale is None else basis * scale
