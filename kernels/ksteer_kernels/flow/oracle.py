"""The flow of a batch of tokens: what gradient steps approach as they grow smaller and more numerous."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ksteer_kernels.flow.path import HiddenField, Path
from ksteer_kernels.reference.mlp import MLPWeights


@dataclass(frozen=True)
class FlowResult:
    """Where n tokens ended and how they got there; all tensors on the CPU.

    Attributes:
        x: [n, d] float64, x(budget).
        s: [n, h1] float64; x = x(0) - W1^T s.
        kinks: [n] int64, how often the path met a kink, to cross it or to slide along it.
        sliding_time: [n] float64, time spent sliding along kinks, of the time integrated exactly.
        fell_back: [n] bool; the rest of the budget was spent in Euler steps, so the end is not exact.
    """

    x: Tensor
    s: Tensor
    kinks: Tensor
    sliding_time: Tensor
    fell_back: Tensor

    @property
    def slid(self) -> Tensor:
        """Which paths slid along a kink for some time, [n] bool."""
        return self.sliding_time > 0


def flow(
    x: Tensor,
    probe: MLPWeights,
    label_weights: Tensor,
    *,
    budget: float,
    max_kinks: int = 10_000,
    fallback_steps: int = 2_000,
) -> FlowResult:
    """Solve dx/dt = -grad L(x) over 0 <= t <= budget from kink to kink, in float64, token by token.

    n steps of `gradient_steps` with alpha = budget / n end near the same place, and nearer for larger n.
    `path.py` has the formulas. An oracle for tests and measurements: O(h1 h2) per kink in NumPy.

    Args:
        x: [n, d], any float dtype.
        probe: f, whose weights may have any float dtype.
        label_weights: c [K]; L = c . f as in `steering_loss`.
        budget: The time to follow the flow for: alpha * num_steps of the steps it is the limit of.
        max_kinks: A token that meets more, or a corner that leaves its way open, spends the rest of its
            budget in Euler steps.
        fallback_steps: How many.

    Raises:
        ValueError: The budget is negative or infinite, or x is not [n, d] and finite.
    """
    if not 0 <= budget < float("inf"):
        raise ValueError(f"budget: must be finite and at least 0, got {budget}")
    if x.ndim != 2 or not torch.isfinite(x).all():
        raise ValueError(f"x: expected finite vectors [n, d], got shape {tuple(x.shape)}")
    if max_kinks < 0 or fallback_steps < 1:
        raise ValueError(f"need max_kinks >= 0 and fallback_steps >= 1, got {max_kinks}, {fallback_steps}")
    start = x.detach().to("cpu", torch.float64)
    w1, b1, w2, b2, w3, c = (
        tensor.detach().to("cpu", torch.float64)
        for tensor in (probe.w1, probe.b1, probe.w2, probe.b2, probe.w3, label_weights)
    )
    field = HiddenField(
        gram=(w1 @ w1.T).numpy(), w2=w2.contiguous().numpy(), b2=b2.numpy(), readout=(w3.T @ c).numpy()
    )
    paths = [Path(field, z1) for z1 in (start @ w1.T + b1).numpy()]
    for path in paths:
        path.follow(float(budget), max_kinks, fallback_steps)
    s = torch.from_numpy(np.array([path.s for path in paths]).reshape(len(paths), w1.shape[0]))
    return FlowResult(
        x=start - s @ w1,
        s=s,
        kinks=torch.tensor([path.kinks for path in paths], dtype=torch.int64),
        sliding_time=torch.tensor([path.sliding_time for path in paths], dtype=torch.float64),
        fell_back=torch.tensor([path.fell_back for path in paths], dtype=torch.bool),
    )
