"""Edits by a probe with hidden layers: gradient steps, reflections; and conditions on what probes say."""

from __future__ import annotations

from dataclasses import replace

import torch
from kernel_edits import Edit, Maker, faded
from torch import Tensor

from ksteer_kernels import Flag, Loss, Program, RowSettings, SlotWeights
from ksteer_kernels.reference import mlp
from ksteer_kernels.reference.mlp import MLPWeights


def double(probe: MLPWeights) -> MLPWeights:
    return MLPWeights(*(getattr(probe, name).double() for name in ("w1", "b1", "w2", "b2", "w3", "b3")))


def make_probe(h1: int, h2: int, num_labels: int, hidden_size: int, generator: torch.Generator) -> MLPWeights:
    """A random probe of ordinary scale in float32."""

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    return MLPWeights(
        w1=normal(h1, hidden_size, scale=hidden_size**-0.5),
        b1=normal(h1, scale=0.3),
        w2=normal(h2, h1, scale=(2 / h1) ** 0.5),
        b2=normal(h2, scale=0.3),
        w3=normal(num_labels, h2, scale=h2**-0.5),
        b3=normal(num_labels, scale=0.3),
    )


def slot_weights(probe: MLPWeights) -> SlotWeights:
    return SlotWeights(
        basis=probe.w1,
        bias=probe.b1,
        matrix=probe.w2,
        matrix_bias=probe.b2,
        head=probe.w3,
        head_bias=probe.b3,
    )


def load_probe(maker: Maker, widths: tuple[int, int] = (24, 17)) -> tuple[int, MLPWeights]:
    """A probe in a slot, and what the slot holds in float64; the same one for the same widths."""

    def make() -> tuple[int, MLPWeights]:
        probe = make_probe(*widths, maker.num_labels, maker.hidden_size, maker.generator)
        probe = replace(probe, w1=probe.w1.to(maker.probes.basis.dtype).float())
        return maker.load(slot_weights(probe)), double(probe)

    return maker.once(("probe", widths), make)


def gradient(
    slot: int, probe: MLPWeights, c: Tensor, metric: Tensor | None = None, **changes: object
) -> Edit:
    """Gradient steps; changes are fields of RowSettings, metric is the slot's."""
    defaults = RowSettings(
        slot,
        Program.GRADIENT,
        strength=0.7,
        num_steps=8,
        readout=c.double() @ probe.w3,
        label_weights=c,
    )
    settings = replace(defaults, **changes)  # type: ignore[arg-type]
    name = {Loss.MEAN: "mean", Loss.SOFTMIN: "softmin", Loss.HINGE: "hinge"}[settings.loss]

    def truth(x: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        return mlp.gradient_steps(
            x, probe, c.double(), alpha=settings.strength * gain, num_steps=settings.num_steps,
            step_decay=settings.decay, loss=name, margin=settings.margin,  # type: ignore[arg-type]
            until_target=settings.until_target, until_avoid=settings.until_avoid,
            normalised=Flag.NORMALISED in settings.flags, metric=metric,
        )  # fmt: skip

    return Edit(settings, truth, probe=probe)


def plain_edits(maker: Maker, widths: tuple[int, int] = (24, 17)) -> list[Edit]:
    """Gradient steps on the mean loss, of several lengths and decays."""
    slot, probe = load_probe(maker, widths)
    labels = [((0,), (1,)), ((1, 2), (0,)), ((3,), ())]
    counts = [maker.max_steps, max(1, maker.max_steps - 3), 1]
    return [
        gradient(slot, probe, maker.label_weights(*sides), num_steps=steps, decay=0.9 if steps > 1 else 1.0)
        for sides, steps in zip(labels, counts, strict=True)
    ]


def loss_edits(maker: Maker, widths: tuple[int, int] = (40, 40)) -> list[Edit]:
    """Every other loss, stopping rule and step unit, alone and together."""
    slot, probe = load_probe(maker, widths)
    c = maker.label_weights((0, 1), (2, 3))
    several = {"num_steps": maker.max_steps, "decay": 0.9}
    until = {"until_target": 0.8, "until_avoid": 0.6}
    return [
        gradient(slot, probe, c, loss=Loss.SOFTMIN, **several),
        gradient(slot, probe, c, loss=Loss.HINGE, margin=0.5, **several),
        gradient(slot, probe, c, num_steps=maker.max_steps, **until),
        gradient(slot, probe, c, flags=Flag.NORMALISED, **several),
        gradient(slot, probe, c, loss=Loss.SOFTMIN, flags=Flag.NORMALISED, **several, **until),
        gradient(slot, probe, maker.label_weights((), (1,)), loss=Loss.SOFTMIN, **several),
    ]


def reflect_edits(maker: Maker, widths: tuple[int, int] = (24, 17)) -> list[Edit]:
    slot, probe = load_probe(maker, widths)
    c = maker.label_weights((), (0, 2))
    return [reflection(slot, probe, c, factor) for factor in (2.0, 1.0)]


def reflection(slot: int, probe: MLPWeights, c: Tensor, factor: float) -> Edit:
    settings = RowSettings(
        slot,
        Program.REFLECT,
        strength=factor,
        readout=c.double() @ probe.w3,
        label_weights=c,
    )
    return Edit(settings, faded(lambda x: mlp.reflect(x, probe, c.double(), factor=factor)), probe=probe)


def conditions(maker: Maker) -> list[Edit]:
    """A logit above and below a threshold, a projection, a cosine."""
    slot, probe = load_probe(maker)
    one = torch.zeros(maker.num_labels)
    one[0] = 1.0
    basis = maker.directions(2)
    vector_slot = maker.load(SlotWeights(basis, bias=torch.tensor([0.25, 0.0])))
    plain, cosine = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]) / basis[1].double().norm()
    direction = basis.double()

    def logit(x: Tensor) -> Tensor:
        return mlp.probe_logits(x, probe)[:, 0]

    def cosine_of(x: Tensor) -> Tensor:
        return (x @ direction[1]) / (direction[1].norm() * x.norm(dim=1))

    condition = Program.CONDITION
    return [
        Edit(RowSettings(slot, condition, margin=0.2, label_weights=one), opens=lambda x: logit(x) > 0.2),
        Edit(RowSettings(slot, condition, margin=-0.2, label_weights=-one), opens=lambda x: logit(x) < 0.2),
        Edit(
            RowSettings(vector_slot, condition, margin=0.1, readout=plain),
            opens=lambda x: x @ direction[0] + 0.25 > 0.1,
        ),
        Edit(
            RowSettings(vector_slot, condition, margin=0.02, readout=cosine, flags=Flag.COSINE),
            opens=lambda x: cosine_of(x) > 0.02,
        ),
    ]
