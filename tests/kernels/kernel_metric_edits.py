"""Edits at slots with a metric: gradient steps and constants whose written rows are not the basis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from kernel_affine_edits import summed
from kernel_edits import Edit, Maker, faded
from kernel_probe_edits import double, gradient, make_probe, slot_weights
from torch import Tensor

from ksteer_kernels import Flag, Loss, Program, RowSettings, SlotWeights
from ksteer_kernels.reference import vectors
from ksteer_kernels.reference.mlp import MLPWeights

METRICS = ("variance", "covariance")


def random_metric(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """Float64: variances [d] over two orders of magnitude, or a covariance [d, d] of full rank."""
    if kind == "variance":
        return torch.randn(size, generator=generator).double().exp()
    factor = torch.randn(size, size, generator=generator).double()
    return factor @ factor.T / size + 0.2 * torch.eye(size, dtype=torch.float64)


def with_metric(weights: SlotWeights, metric: Tensor) -> SlotWeights:
    """The same slot under the metric diag(metric) [d] or metric [d, d]."""
    if metric.ndim == 1:
        return replace(weights, scale=metric.float())
    return replace(weights, up=(weights.basis.double() @ metric).to(weights.basis.dtype))


def stored_metric(weights: SlotWeights, stored: torch.dtype) -> Tensor:
    """M in float64 as the tables hold it: diag(scale), or an M with basis M = up, rounded as it is stored."""
    if weights.scale is not None:
        return weights.scale.double()
    assert weights.up is not None
    return torch.linalg.pinv(weights.basis.double()) @ weights.up.to(stored).double()


def metric_probe(
    maker: Maker, kind: str, widths: tuple[int, int] = (24, 17)
) -> tuple[int, MLPWeights, Tensor]:
    """A probe in a slot with a metric; the probe and the metric as they are stored, in float64."""
    stored = maker.probes.basis.dtype

    def make() -> tuple[int, MLPWeights, Tensor]:
        probe = make_probe(*widths, maker.num_labels, maker.hidden_size, maker.generator)
        probe = replace(probe, w1=probe.w1.to(stored).float())
        metric = random_metric(kind, maker.hidden_size, maker.generator)
        weights = with_metric(slot_weights(probe), metric)
        return maker.load(weights), double(probe), stored_metric(weights, stored)

    return maker.once((kind, widths), make)


def metric_edits(kind: str) -> Callable[[Maker], list[Edit]]:
    """Every loss, stopping rule, step unit and bound under a metric; under a variance constants, too."""

    def edits(maker: Maker) -> list[Edit]:
        slot, probe, metric = metric_probe(maker, kind)
        c = maker.label_weights((0, 1), (2, 3))
        several = {"num_steps": maker.max_steps, "decay": 0.9, "strength": 0.4}
        until = {"until_target": 0.8, "until_avoid": 0.6}
        steps = [
            gradient(slot, probe, c, metric, **several),
            gradient(slot, probe, maker.label_weights((3,), ()), metric, num_steps=1),
            gradient(slot, probe, c, metric, flags=Flag.NORMALISED, **several),
            gradient(slot, probe, c, metric, loss=Loss.HINGE, margin=0.5, **several),
            gradient(
                slot, probe, c, metric, loss=Loss.SOFTMIN, flags=Flag.NORMALISED, **several, **until
            ),
        ]  # fmt: skip
        constants = constant_edits(maker) if kind == "variance" else []
        return [*steps, steps[0].bounded(cap=0.05), *constants]

    return edits


def constant_edits(maker: Maker) -> list[Edit]:
    """The gradient of a linear probe: the same vector everywhere, the second time with a cap."""

    def make() -> tuple[int, Tensor]:
        scale = random_metric("variance", maker.hidden_size, maker.generator).float()
        basis = maker.directions(maker.num_labels)
        return maker.load(SlotWeights(basis, scale=scale)), basis.double() * scale.double()

    slot, written = maker.once("scaled vectors", make)
    c = -maker.label_weights((0,), (1,))
    added = RowSettings(slot, Program.ADD, strength=1.5, readout=c)
    capped = RowSettings(slot, Program.AFFINE, readout=-1.5 * c)
    truth = faded(summed(vectors.add, written, c, 1.5))
    return [Edit(added, truth), Edit(capped, truth).bounded(cap=0.02)]


def full(metric: Tensor) -> Tensor:
    return torch.diag(metric) if metric.ndim == 1 else metric
