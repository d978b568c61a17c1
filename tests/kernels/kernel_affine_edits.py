"""Edits without steps: vectors, ACE, LoReFT, LoReST, clamped and gated features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kernel_edits import Edit, Maker, faded, weighted
from torch import Tensor

from ksteer_kernels import Activation, Program, RowSettings, SlotWeights
from ksteer_kernels.reference import ace, loreft, lorest, sae, vectors


def add_edits(maker: Maker) -> list[Edit]:
    """Constant vectors."""
    basis = maker.once("vectors", lambda: maker.directions(maker.num_labels))
    slot = maker.once("vector slot", lambda: maker.load(SlotWeights(basis)))
    edits = []
    for targets, avoids, alpha in (((0,), (1,), 2.0), ((1, 2), (), 0.5)):
        c = -maker.label_weights(targets, avoids)
        settings = RowSettings(slot, Program.ADD, strength=alpha, readout=c)
        edits.append(Edit(settings, faded(summed(vectors.add, basis, c, alpha))))
    return edits


def summed(add: Callable[..., Tensor], basis: Tensor, c: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda x: add(x, basis.double(), c.double(), alpha=alpha)


def ace_edits(maker: Maker) -> list[Edit]:
    """Affine concept editing and ablation of two labels, with weights 0.75 and 0.25."""
    units, lengths = maker.once("units", lambda: maker.units(3)), torch.tensor([2.0, 3.0, 0.5])
    negatives = maker.normal(3, maker.hidden_size, scale=0.3).double()
    slot = maker.once("unit slot", lambda: maker.load(SlotWeights(units, matrix=torch.eye(3))))
    share = torch.tensor([0.75, 0.25, 0.0])
    directions = (units * lengths[:, None]).double()
    edits = []
    for alpha in (1.0, -0.5):
        goal = (negatives * units).sum(1) + alpha * lengths
        settings = RowSettings(slot, Program.AFFINE, scale=share, readout=-share * goal)
        parts = [(float(share[k]), ace_of(directions[k], negatives[k], alpha)) for k in range(2)]
        edits.append(Edit(settings, weighted(parts)))
    settings = RowSettings(slot, Program.AFFINE, scale=0.875 * share)
    parts = [(float(share[k]), ablation_of(directions[k], 0.875)) for k in range(2)]
    return [*edits, Edit(settings, weighted(parts))]


def ace_of(direction: Tensor, negatives: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda x: ace.ace(x, direction, negatives, alpha=alpha)


def ablation_of(direction: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda x: ace.ablate(x, direction, alpha=alpha)


def orthonormal(maker: Maker, count: int) -> Tensor:
    """[count, d] orthonormal rows, then rounded as the table stores them."""
    rows = torch.linalg.qr(maker.normal(maker.hidden_size, count))[0].T
    return rows.to(maker.probes.basis.dtype).float()


def loreft_edits(maker: Maker, rank: int = 3) -> list[Edit]:
    rotation = torch.stack([orthonormal(maker, rank) for _ in range(2)])
    weight = torch.stack([maker.directions(rank) for _ in range(2)])
    bias = maker.normal(2, rank)
    eye, zero = torch.eye(2 * rank), torch.zeros(2 * rank, 2 * rank)
    matrix = torch.cat([torch.cat([eye, -eye], 1), torch.cat([zero, zero], 1)])
    slot = maker.load(SlotWeights(torch.cat([rotation.flatten(0, 1), weight.flatten(0, 1)]), matrix=matrix))
    edits = []
    for alpha, share in ((1.0, (1.0, 0.0)), (0.75, (0.25, 0.75))):
        by_row = alpha * torch.tensor(share).repeat_interleave(rank)
        settings = RowSettings(
            slot,
            Program.AFFINE,
            scale=torch.cat([by_row, zero[0]]),
            readout=-by_row * bias.flatten().double(),
        )
        parts = [
            (share[k], loreft_of(rotation[k].double(), weight[k].double(), bias[k].double(), alpha))
            for k in range(2)
        ]
        edits.append(Edit(settings, weighted(parts)))
    return edits


def loreft_of(rotation: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda x: loreft.loreft(x, rotation, weight, bias, alpha=alpha)


def lorest_edits(maker: Maker, rank: int = 4) -> list[Edit]:
    basis, bias = orthonormal(maker, rank), maker.directions(1)
    removed = torch.tensor([1.0, 0.0, 1.0, 1.0])[:rank]
    slot = maker.load(
        SlotWeights(torch.cat([basis, bias]), matrix=torch.diag(torch.cat([removed, torch.zeros(1)])))
    )
    edits = []
    for alpha in (1.0, 0.375):
        settings = RowSettings(
            slot,
            Program.AFFINE,
            scale=torch.full((rank + 1,), alpha),
            readout=torch.tensor([0.0] * rank + [-alpha]),
        )
        edits.append(
            Edit(settings, faded(lorest_of(basis.double(), removed.double(), bias[0].double(), alpha)))
        )
    return edits


def lorest_of(basis: Tensor, removed: Tensor, bias: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda x: lorest.lorest(x, basis, removed, bias, alpha=alpha)


@dataclass(frozen=True)
class Dictionary:
    """The chosen features of a sparse autoencoder."""

    w_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    w_dec: Tensor


def clamp_slot(features: Dictionary, activation: Activation) -> SlotWeights:
    """Basis [enc; dec], and the map from each encoder unit to its decoder unit."""
    k = len(features.b_enc)
    none = torch.zeros(k)
    kind = torch.tensor([int(activation)] * k + [int(Activation.IDENTITY)] * k)
    matrix = torch.zeros(2 * k, 2 * k)
    matrix[k:, :k] = torch.eye(k)
    return SlotWeights(
        torch.cat([features.w_enc, features.w_dec]),
        bias=torch.cat([features.b_enc, none]),
        matrix=matrix,
        activation=kind,
        threshold=torch.cat([features.threshold, none]),
    )


def clamping(slot: int, features: Dictionary, chosen: Tensor, values: Tensor) -> Edit:
    none = torch.zeros(len(chosen))
    settings = RowSettings(
        slot,
        Program.AFFINE,
        scale=torch.cat([none, chosen.float()]),
        readout=torch.cat([none, torch.where(chosen, -values, none)]),
    )
    w_enc, b_enc, threshold, w_dec = (
        getattr(features, name).double() for name in ("w_enc", "b_enc", "threshold", "w_dec")
    )
    return Edit(
        settings, faded(lambda x: sae.clamp(x, w_enc, b_enc, threshold, w_dec, chosen, values.double()))
    )


def sae_edits(maker: Maker, count: int = 5) -> list[Edit]:
    """Clamped features of a jumprelu and of a relu dictionary."""
    edits = []
    for activation in (Activation.JUMPRELU, Activation.RELU):
        jump = maker.normal(count).abs() if activation == Activation.JUMPRELU else torch.zeros(count)
        features = Dictionary(
            maker.directions(count), maker.normal(count, scale=0.3), jump, maker.directions(count)
        )
        slot = maker.load(clamp_slot(features, activation))
        chosen = torch.arange(count) % 2 == 0
        edits.append(clamping(slot, features, chosen, maker.normal(count).abs()))
    return edits


def gated_edits(maker: Maker, count: int = 3) -> list[Edit]:
    """Vectors, each added as far as the sigmoid of its own gate is open."""
    gates, added, bias = maker.directions(count), maker.directions(count), maker.normal(count)
    slot = maker.load(
        SlotWeights(
            torch.cat([gates, added]),
            bias=torch.cat([bias, torch.zeros(count)]),
            activation=torch.tensor([int(Activation.SIGMOID)] * count + [int(Activation.IDENTITY)] * count),
            gate_unit=torch.tensor([-1] * count + list(range(count))),
        )
    )
    share = torch.tensor([1.5, -0.5, 0.25][:count])
    settings = RowSettings(slot, Program.AFFINE, readout=torch.cat([torch.zeros(count), -share]))

    def truth(x: Tensor) -> Tensor:
        opening = torch.sigmoid(x @ gates.double().T + bias.double())
        return x + (opening * share.double()) @ added.double()

    return [Edit(settings, faded(truth))]
