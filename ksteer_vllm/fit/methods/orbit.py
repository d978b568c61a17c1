"""Gated rotations in a joint subspace, after ORBIT (Ghasemi et al. 2026, arXiv:2606.22357). Family `orbit`.

The labels' mean differences, each at length 1, and the leading principal directions of the activations are
joined by one singular value decomposition: its right singular vectors V [m, d] are a subspace all labels
share. Label k rotates in the plane of a_k = V mean(x, k not shown) and b_k = V mean(x, k shown), by the angle
from a_k to b_k; rows u_k = a_k / |a_k| and w_k, the part of b_k orthogonal to u_k, at length 1. Its gate is a
logistic regression's probability that a token does not show the label yet.

ORBIT turns once, towards a combination of the chosen labels; here every label has its own plane, angle and
gate, and a request's labels add up, as in every other family. alpha is a share of the angle: 1 is the
rotation that was fitted, and beyond half a turn a larger alpha steers less.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ksteer_vllm.errors import DataError, UsageError
from ksteer_vllm.fit.heldout import evaluate
from ksteer_vllm.fit.logistic import logistic_regression
from ksteer_vllm.fit.plans import SplitPlan
from ksteer_vllm.fit.statistics import (
    activation_scale,
    check_directions,
    covariance,
    label_means,
    standardisation,
)
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe

__all__ = ["ORBITPlan", "fit"]

_DEGENERATE = 1e-6


class ORBITPlan(SplitPlan):
    """Options of `--method orbit`."""

    directions: Annotated[
        int, Field(ge=1, description="Leading principal directions in the joint subspace.")
    ] = 4
    l2: Annotated[float, Field(gt=0, description="Weight of |w|^2 / 2 beside the gates' log loss.")] = 1.0
    max_iter: Annotated[int, Field(ge=1, description="Maximum number of L-BFGS iterations of the gates.")] = (
        1000
    )


def fit(task: FitTask) -> Probe:
    """Planes, angles and gates from the training rows; held-out metrics read labels off the closed gates."""
    plan = task.plan(ORBITPlan)
    if plan.directions > task.identity.hidden_size:
        raise UsageError(f"directions: {plan.directions} of {task.identity.hidden_size} dimensions")
    train, test = task.train_and_test()
    shown, absent = label_means(train.stream, train.targets)
    check_directions(shown - absent, task.labels)
    plane, angle = planes(
        joint_subspace(train.stream, shown - absent, plan.directions), absent, shown, task.labels
    )
    weight, bias = _gates(train.stream, train.targets, plan)
    covered = _covered(plane, angle, absent, shown).tolist()
    return task.probe(
        "orbit",
        {"plane": plane, "angle": angle, "gate_weight": weight, "gate_bias": bias},
        training=task.training(plan),
        metrics={
            **evaluate(-(test.along(weight) + bias), test.targets, test.row, task.labels),
            "covered": dict(zip(task.labels, covered, strict=True)),
        },
        scale=activation_scale(train.stream),
    )


def joint_subspace(x: Tensor | Stream, differences: Tensor, directions: int) -> Tensor:
    """V [m, d] float64 with orthonormal rows; x [N, d], differences [K, d], all of which it holds."""
    leading = torch.linalg.eigh(covariance(x)).eigenvectors[:, -directions:].T
    units = differences.double() / differences.double().norm(dim=1, keepdim=True)
    _, values, rows = torch.linalg.svd(torch.cat([units, leading]), full_matrices=False)
    return rows[values > _DEGENERATE * values[0]]


def planes(subspace: Tensor, absent: Tensor, shown: Tensor, labels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Rows (u_k, w_k) [K, 2, d] and angles [K]; means absent, shown [K, d]; subspace [m, d] float64.

    Raises DataError where the two means point the same way in the subspace: no rotation tells them apart.
    """
    rows, angles = [], []
    for label, start, end in zip(labels, absent.double(), shown.double(), strict=True):
        a, b = subspace @ start, subspace @ end
        u = a / a.norm().clamp_min(1e-300)
        along = b @ u
        across = b - along * u
        if not across.norm() > _DEGENERATE * b.norm():
            raise DataError(f"labels: the means with and without {label!r} point the same way: no rotation")
        w = across / across.norm()
        rows.append(torch.stack([u, w]) @ subspace)
        angles.append(torch.atan2(across.norm(), along))
    return torch.stack(rows), torch.stack(angles)


def _covered(plane: Tensor, angle: Tensor, absent: Tensor, shown: Tensor) -> Tensor:
    """[K]: how far the rotation takes the mean without a label along the difference to the mean with it, 1
    being all the way. A rotation keeps lengths: where the means differ mostly in length, this is near 0."""
    u, w = (plane @ absent[:, :, None])[:, :, 0].unbind(1)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    moved = torch.stack([u * cosine - w * sine - u, u * sine + w * cosine - w], 1)
    difference = shown - absent
    return torch.einsum("kp,kpd,kd->k", moved, plane, difference) / difference.square().sum(1)


def _gates(x: Stream, targets: Tensor, plan: ORBITPlan) -> tuple[Tensor, Tensor]:
    """weight [K, d], bias [K] on raw x: the log odds that a token does not show the label."""
    mean, std = standardisation(x)
    found, offset, _ = logistic_regression(
        x.standardised(mean, std), targets < 0.5, l2=plan.l2, max_iter=plan.max_iter
    )
    weight = found.double() / std.double()
    return weight.float(), (offset.double() - weight @ mean.double()).float()
