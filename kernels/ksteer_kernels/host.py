"""Probe weights in the form the CPU path multiplies fastest, made once per loaded probe.

torch sends float32 GEMMs of a few rows to a general BLAS; oneDNN with weights packed beforehand takes half
the time from about 16 rows on. Its operators are those that torch's own compiler emits for CPUs. Where they
are missing, everything runs through torch.nn.functional.linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PACKED_FROM_ROWS = 16
"""With fewer rows the plain GEMM, which also writes in place, is faster than a packed one."""

_CAN_PACK = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
)


class Linear:
    """x @ weight.T + bias in float32 for x [n, k] and a fixed weight [m, k]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.float()
        self.transposed = self.weight.T
        self.packed: Tensor | None = None
        if _CAN_PACK and weight.device.type == "cpu" and weight.numel() > 0:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The product [n, m]; in `out` where that is possible."""
        if self.packed is not None and x.shape[0] >= PACKED_FROM_ROWS:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        if bias is None:
            return torch.mm(x, self.transposed, out=out)
        return torch.addmm(bias, x, self.transposed, out=out)

    def subtract_from_(self, z: Tensor, x: Tensor) -> None:
        """z <- z - x @ weight.T, in place."""
        if self.packed is not None and x.shape[0] >= PACKED_FROM_ROWS:
            z.sub_(self(x))
        else:
            z.addmm_(x, self.transposed, alpha=-1)


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
