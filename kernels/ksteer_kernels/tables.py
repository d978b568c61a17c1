"""Persistent device tables: probe weights by slot, request settings by row.

Nothing in here ever moves or grows after `allocate`, so captured CUDA graphs may keep the addresses.
Shapes: num_tokens T, hidden_size d, probe width H, num_labels K, probe slots P, open layers L, rows R.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from ksteer_kernels.checks import check_weights
from ksteer_kernels.host import HostProbe

NO_ROW = -1
NO_SLOT = -1


class Program(IntEnum):
    """What is done in the hidden space of a probe to one token.

    GRADIENT: num_steps gradient steps on the linear loss (K-Steering, arXiv 2505.24535, Algorithm 1).
    REFLECT: subtract factor * (x.v)/(v.v) v with v the gradient of the mean avoid logit; factor 2 is the
        Householder reflection of Algorithm 2, factor 1 removes the component.
    ADD: add strength * (signed sum of label vectors); contrastive activation addition.
    """

    GRADIENT = 0
    REFLECT = 1
    ADD = 2


@dataclass
class ProbeTables:
    """Weights of all loaded probes, one slot each, zero padded to the largest allowed probe.

    w1: [P, H, d] weight_dtype; first layer on the raw residual stream (standardisation folded in).
    b1: [P, H] float32.
    w2: [P, H, H] float32; row: unit of the second hidden layer, column: unit of the first.
    b2: [P, H] float32.
    gram: [P, H, H] float32; G = W1 W1^T computed in float64 from the stored (rounded) w1.
    vectors: [P, K, d] weight_dtype; label vectors used by Program.ADD.
    widths: host-side true widths (h1, h2) per slot, (0, 0) for an empty one; lets the CPU path skip padding.
    num_labels: host-side count of label vectors per slot.
    host_probes: the CPU path's form of the slots it has used, forgotten by `load` and `clear`.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gram: Tensor
    vectors: Tensor
    widths: list[tuple[int, int]] = field(default_factory=list)
    num_labels: list[int] = field(default_factory=list)
    host_probes: dict[int, HostProbe] = field(default_factory=dict, repr=False)

    @classmethod
    def allocate(
        cls,
        num_slots: int,
        max_width: int,
        max_labels: int,
        hidden_size: int,
        weight_dtype: torch.dtype,
        device: torch.device | str,
    ) -> ProbeTables:
        """Allocate zeroed tables for `num_slots` probes; raises ValueError on a size below 1."""
        sizes = {
            "num_slots": num_slots,
            "max_width": max_width,
            "max_labels": max_labels,
            "hidden_size": hidden_size,
        }
        _require_positive(sizes)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            w1=zeros(num_slots, max_width, hidden_size, dtype=weight_dtype),
            b1=zeros(num_slots, max_width),
            w2=zeros(num_slots, max_width, max_width),
            b2=zeros(num_slots, max_width),
            gram=zeros(num_slots, max_width, max_width),
            vectors=zeros(num_slots, max_labels, hidden_size, dtype=weight_dtype),
            widths=[(0, 0)] * num_slots,
            num_labels=[0] * num_slots,
        )

    @property
    def num_slots(self) -> int:
        return self.w1.shape[0]

    @property
    def max_width(self) -> int:
        return self.w1.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.w1.shape[2]

    @property
    def max_labels(self) -> int:
        return self.vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Device bytes held by all tables."""
        return sum(t.nbytes for t in (self.w1, self.b1, self.w2, self.b2, self.gram, self.vectors))

    def load(
        self, slot: int, *, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, vectors: Tensor | None = None
    ) -> None:
        """Copy one probe into a slot, in place, zero padding what it does not fill.

        w1 [h1, d], b1 [h1], w2 [h2, h1], b2 [h2], vectors [k, d] or None, any float dtype, any device.
        Raises ValueError naming the field whose shape, size or values do not fit; the slot is then unchanged.
        """
        self._check_slot(slot)
        weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
        if vectors is not None:
            weights["vectors"] = vectors
        h1, h2 = check_weights(weights, self.w1.shape[1:], self.max_labels, self.w1.dtype)
        self.clear(slot)
        self.w1[slot, :h1].copy_(w1)
        self.b1[slot, :h1].copy_(b1)
        self.w2[slot, :h2, :h1].copy_(w2)
        self.b2[slot, :h2].copy_(b2)
        stored = self.w1[slot, :h1].double()
        self.gram[slot, :h1, :h1].copy_(stored @ stored.T)
        if vectors is not None:
            self.vectors[slot, : vectors.shape[0]].copy_(vectors)
            self.num_labels[slot] = vectors.shape[0]
        self.widths[slot] = (h1, h2)

    def clear(self, slot: int) -> None:
        """Zero a slot; a zero probe edits nothing."""
        self._check_slot(slot)
        for table in (self.w1, self.b1, self.w2, self.b2, self.gram, self.vectors):
            table[slot].zero_()
        self.widths[slot] = (0, 0)
        self.num_labels[slot] = 0
        self.host_probes.pop(slot, None)

    def host_probe(self, slot: int) -> HostProbe:
        """The loaded probe of a slot for the CPU path; made at first use, which doubles its memory."""
        if slot not in self.host_probes:
            h1, h2 = self.widths[slot]
            self.host_probes[slot] = HostProbe.of(
                self.w1[slot, :h1],
                self.b1[slot, :h1],
                self.w2[slot, :h2, :h1],
                self.b2[slot, :h2],
                self.gram[slot, :h1, :h1],
            )
        return self.host_probes[slot]

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot: {slot} is not in 0..{self.num_slots - 1}")


@dataclass
class RowTables:
    """What each request row does at each open layer.

    slot: [L, R] int32; NO_SLOT (-1): this row does nothing at this layer.
    program: [L, R] int32, a Program.
    num_steps: [L, R] int32 (GRADIENT only).
    strength: [L, R] float32; alpha for GRADIENT and ADD, the factor (2 or 1) for REFLECT; 0 edits nothing.
    decay: [L, R] float32; step t of GRADIENT has the size strength * decay**t.
    readout: [L, R, max(H, K)] float32; GRADIENT, REFLECT: u = W3^T c, zero padded;
        ADD: signed label weights (+ target, - avoid) in the first K entries.
    windows: [R, 4] int64 absolute positions; a token at pos is steered iff
        windows[0] <= pos < windows[1] or windows[2] <= pos < windows[3].
    """

    slot: Tensor
    program: Tensor
    num_steps: Tensor
    strength: Tensor
    decay: Tensor
    readout: Tensor
    windows: Tensor

    @classmethod
    def allocate(
        cls,
        num_layers: int,
        num_rows: int,
        max_width: int,
        max_labels: int,
        device: torch.device | str,
    ) -> RowTables:
        """Allocate tables in which no row does anything; raises ValueError on a size below 1."""
        sizes = {
            "num_layers": num_layers,
            "num_rows": num_rows,
            "max_width": max_width,
            "max_labels": max_labels,
        }
        _require_positive(sizes)
        by_layer = (num_layers, num_rows)

        def table(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full(by_layer, value, dtype=dtype, device=device)

        return cls(
            slot=table(NO_SLOT, torch.int32),
            program=table(Program.GRADIENT, torch.int32),
            num_steps=table(0, torch.int32),
            strength=table(0.0, torch.float32),
            decay=table(1.0, torch.float32),
            readout=torch.zeros((*by_layer, max(max_width, max_labels)), device=device),
            windows=torch.zeros((num_rows, 4), dtype=torch.int64, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Device bytes held by all tables."""
        by_layer = (self.slot, self.program, self.num_steps, self.strength, self.decay, self.readout)
        return sum(t.nbytes for t in by_layer) + self.windows.nbytes

    def reset_row(self, row: int) -> None:
        """Make a row do nothing at every layer and at every position."""
        if not 0 <= row < self.slot.shape[1]:
            raise ValueError(f"row: {row} is not in 0..{self.slot.shape[1] - 1}")
        self.slot[:, row] = NO_SLOT
        self.program[:, row] = int(Program.GRADIENT)
        self.num_steps[:, row] = 0
        self.strength[:, row] = 0.0
        self.decay[:, row] = 1.0
        self.readout[:, row] = 0.0
        self.windows[row] = 0


def _require_positive(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be at least 1, got {size}")
