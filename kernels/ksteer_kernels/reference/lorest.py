"""LoReST: removal of learned directions of a low-rank subspace, and a learned shift."""

from __future__ import annotations

from torch import Tensor


def lorest(x: Tensor, basis: Tensor, removed: Tensor, bias: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x + alpha (b - Q diag(p) Q^T x); basis Q^T [r, d] with orthonormal rows, removed p [r] of 0 and 1,
    bias b [d]."""
    return x + alpha * (bias - ((x @ basis.T) * removed) @ basis)
