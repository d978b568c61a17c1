"""Probe weights in the form the CPU path multiplies fastest, made once per loaded probe.

torch sends float32 GEMMs of a few rows to a general BLAS; oneDNN with weights packed beforehand takes half
the time from about 16 rows on. Its operators are those that torch's own compiler emits for CPUs. Where they
are missing, everything runs through torch.nn.functional.linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PACKED_FROM_ROWS = 8
"""With fewer rows the plain GEMM is faster: a packed one costs some 10 microseconds more per call."""

_CAN_PACK = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
)


class Linear:
    """x @ weight.T + bias in float32 for x [n, k] and a fixed weight [m, k]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.float()
        self.packed: Tensor | None = None
        if _CAN_PACK and weight.device.type == "cpu" and weight.numel() > 0:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.packed is None or x.shape[0] < PACKED_FROM_ROWS:
            return torch.nn.functional.linear(x, self.weight, bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")


@dataclass(frozen=True)
class HostProbe:
    """One probe at its true widths h1, h2.

    first: d -> h1 and back; second: h1 -> h2 and back; gram: h1 -> h1; b1 [h1], b2 [h2] float32.
    """

    first: Linear
    first_back: Linear
    second: Linear
    second_back: Linear
    gram: Linear
    b1: Tensor
    b2: Tensor

    @classmethod
    def of(cls, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gram: Tensor) -> HostProbe:
        """w1 [h1, d], b1 [h1], w2 [h2, h1], b2 [h2], gram [h1, h1]."""
        return cls(Linear(w1), Linear(w1.T), Linear(w2), Linear(w2.T), Linear(gram), b1, b2)
