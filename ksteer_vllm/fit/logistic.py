"""Logistic regression on vectors that need not fit in memory: L-BFGS over sums that are read in blocks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.stream import Stream

__all__ = ["logistic_regression"]

_TOLERANCE = 1e-5
"""The solver stops when no coordinate of the mean loss's gradient exceeds this."""


def logistic_regression(
    z: Tensor | Stream, shown: Tensor, *, l2: float, max_iter: int
) -> tuple[Tensor, Tensor, int]:
    """weight [K, d], bias [K] float32 and the iterations; z [N, d], shown [N, K] bool.

    Every label by itself: the w, b that minimise, with y_i = +-1,
    sum_i log(1 + exp(-y_i (w z_i + b))) + l2 |w|^2 / 2. All are minimised together, since their sum has no
    terms in common. Raises DataError if a label is always or never shown.
    """
    from scipy.optimize import minimize

    stream, sign = Stream.of(z), 2 * shown.float() - 1
    labels, size, count = shown.shape[1], stream.hidden_size, len(stream)
    if not (shown.any(0) & ~shown.all(0)).all():
        raise DataError("labels: a regression needs vectors with and without every label")

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).reshape(labels, size + 1)
        weight, bias = parameters[:, :-1].float(), parameters[:, -1].float()
        total, slope = 0.0, torch.zeros_like(parameters)
        for where, block in stream.blocks():
            y = sign[where]
            margin = y * (block @ weight.T + bias)
            total += softplus(-margin).double().sum().item()
            pull = -y * torch.sigmoid(-margin)
            slope[:, :-1] += (pull.T @ block).double()
            slope[:, -1] += pull.double().sum(0)
        total += l2 * parameters[:, :-1].square().sum().item() / 2
        slope[:, :-1] += l2 * parameters[:, :-1]
        return total / count, (slope / count).flatten().numpy()

    found = minimize(
        objective,
        np.zeros(labels * (size + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "gtol": _TOLERANCE, "ftol": 0.0, "maxls": 50},
    )
    parameters = torch.from_numpy(found.x).reshape(labels, size + 1).float()
    return parameters[:, :-1].contiguous(), parameters[:, -1].contiguous(), int(found.nit)
