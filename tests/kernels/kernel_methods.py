"""The edits the kernel tests ask for: every method's slot, rows that use it, and the truth about them.

The truth is `ksteer_kernels.reference` in float64, on the weights as the tables store them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels import Activation, Flag, Loss, ProbeTables, Program, RowSettings, SlotWeights
from ksteer_kernels.reference import ace, bounds, loreft, lorest, mlp, sae, vectors
from ksteer_kernels.reference.mlp import MLPWeights

INF = float("inf")


@dataclass(frozen=True)
class Edit:
    """What one row does in one stage.

    truth: (x [n, d] float64, gain) -> (x', steps [n] or None). opens: for a CONDITION alone, x -> [n] bool.
    probe: of a slot that has logits.
    """

    settings: RowSettings
    truth: Callable[[Tensor, float], tuple[Tensor, Tensor | None]] | None = None
    opens: Callable[[Tensor], Tensor] | None = None
    probe: MLPWeights | None = None

    def bounded(self, cap: float = INF, preserve: bool = False) -> Edit:
        """The same edit with a cap, with its norm preserved."""
        inner = self.truth
        assert inner is not None

        def truth(x: Tensor, gain: float) -> tuple[Tensor, Tensor | None]:
            edited, steps = inner(x, gain)
            edited = bounds.cap(x, edited, cap)
            return (bounds.preserve_norm(x, edited) if preserve else edited), steps

        flags = self.settings.flags | (Flag.PRESERVE_NORM if preserve else 0)
        return replace(self, settings=replace(self.settings, cap=cap, flags=flags), truth=truth)

    def flagged(self, flags: Flag) -> Edit:
        return replace(self, settings=replace(self.settings, flags=self.settings.flags | flags))


@dataclass
class Maker:
    """Loads slots of random weights, of ordinary scale, one after the other; slot 0 stays empty."""

    probes: ProbeTables
    num_labels: int
    generator: torch.Generator
    max_steps: int = 8
    loaded: dict[int, SlotWeights] = field(default_factory=dict)
    made: dict[object, Any] = field(default_factory=dict)

    @property
    def hidden_size(self) -> int:
        return self.probes.hidden_size

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    def directions(self, count: int) -> Tensor:
        """[count, d] float32 as the table would store them, of length about 1."""
        return (
            self.normal(count, self.hidden_size, scale=self.hidden_size**-0.5)
            .to(self.probes.basis.dtype)
            .float()
        )

    def units(self, count: int) -> Tensor:
        """[count, d] of length 1 to the bit in every dtype: 16 entries of 1/4 and -1/4."""
        rows = torch.zeros(count, self.hidden_size)
        for row in rows:
            chosen = torch.randperm(self.hidden_size, generator=self.generator)[:16]
            row[chosen] = torch.where(self.normal(16) > 0, 0.25, -0.25)
        return rows

    def load(self, weights: SlotWeights) -> int:
        slot = len(self.loaded) + 1
        self.probes.load(slot, weights)
        self.loaded[slot] = weights
        return slot

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What make returned at the first call with this key: methods that can share a slot do."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def label_weights(self, targets: tuple[int, ...], avoids: tuple[int, ...]) -> Tensor:
        """c [K], uneven on both sides; labels are taken modulo K, a target that is an avoid, too, wins."""
        c = torch.zeros(self.num_labels)
        for sign, labels in ((1.0, avoids), (-1.0, targets)):
            for place, label in enumerate(labels, start=1):
                c[label % self.num_labels] = sign * 2 * place / (len(labels) * (len(labels) + 1))
        return c


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


def faded(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], tuple[Tensor, None]]:
    """The truth of an edit whose whole change fades."""
    return lambda x, gain: (x + gain * (change(x) - x), None)


def gradient(slot: int, probe: MLPWeights, c: Tensor, **changes: object) -> Edit:
    """Gradient steps; changes are fields of RowSettings."""
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
            normalised=Flag.NORMALISED in settings.flags,
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


def weighted(
    changes: list[tuple[float, Callable[[Tensor], Tensor]]],
) -> Callable[[Tensor, float], tuple[Tensor, None]]:
    """The truth of several labels' edits: the sum of their changes by weight."""

    def total(x: Tensor) -> Tensor:
        return x + sum((weight * (change(x) - x) for weight, change in changes), torch.zeros_like(x))

    return faded(total)


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


def bounded_edits(maker: Maker) -> list[Edit]:
    """Caps that bind and caps that do not, norm preservation, and both, on every kind of program."""
    steps, reflects, adds, aces = plain_edits(maker), reflect_edits(maker), add_edits(maker), ace_edits(maker)
    return [
        steps[0].bounded(cap=0.05),
        steps[1].bounded(preserve=True),
        reflects[1].bounded(cap=0.1, preserve=True),
        adds[0].bounded(cap=0.02),
        adds[1].bounded(preserve=True),
        aces[0].bounded(cap=0.2, preserve=True),
        aces[1].bounded(cap=100.0),
    ]


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


METHODS: dict[str, Callable[[Maker], list[Edit]]] = {
    "plain": plain_edits,
    "losses": loss_edits,
    "reflect": reflect_edits,
    "add": add_edits,
    "ace": ace_edits,
    "loreft": loreft_edits,
    "lorest": lorest_edits,
    "sae": sae_edits,
    "gated": gated_edits,
    "bounded": bounded_edits,
}
