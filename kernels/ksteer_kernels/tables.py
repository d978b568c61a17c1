"""The probe tables: the weights loaded on the device, by slot, for every method.

Nothing in here ever moves or grows after `allocate`, so captured CUDA graphs may keep the addresses.
Shapes: hidden_size d, rows of a basis r (at most the table's width H), num_labels K, slots P.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum

import torch
from torch import Tensor

from ksteer_kernels.checks import check_weights
from ksteer_kernels.packed import CPUSlot

NO_SLOT = -1


class Activation(IntEnum):
    """What a unit of an AFFINE slot does to its projection: q = act(p + bias).

    JUMPRELU: q = z where z > threshold, else 0 (Rajamanoharan et al., arXiv 2407.14435).
    """

    IDENTITY = 0
    RELU = 1
    SIGMOID = 2
    JUMPRELU = 3


@dataclass(frozen=True)
class SlotWeights:
    """What one slot holds, unpadded; any float dtype, any device; what is None is zero.

    Attributes:
        basis: [r, d]; p = basis x is all a program sees of x, and x' = x - basis^T s all it does.
        bias: [r].
        matrix: [m, r], a probe's second layer (GRADIENT, REFLECT, CONDITION), or [r, r], the linear map of
            AFFINE.
        matrix_bias: [m], of the second layer.
        head: [K, m], a probe's last layer.
        head_bias: [K].
        activation: [r] integer, an `Activation` for each unit (AFFINE).
        threshold: [r], of JUMPRELU.
        gate_unit: [r] integer, the unit whose activation multiplies this one's; -1: not gated (AFFINE).
    """

    basis: Tensor
    bias: Tensor | None = None
    matrix: Tensor | None = None
    matrix_bias: Tensor | None = None
    head: Tensor | None = None
    head_bias: Tensor | None = None
    activation: Tensor | None = None
    threshold: Tensor | None = None
    gate_unit: Tensor | None = None

    @property
    def width(self) -> int:
        """Room the slot needs: the larger of r and m."""
        return max(self.basis.shape[0], 0 if self.matrix is None else self.matrix.shape[0])

    @property
    def num_labels(self) -> int:
        return 0 if self.head is None else self.head.shape[0]

    def given(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: tensor for name, tensor in named if tensor is not None}


@dataclass
class ProbeTables:
    """Weights of all loaded slots, zero padded to the largest allowed one.

    Attributes:
        basis: [P, H, d] weight_dtype, on the raw residual stream (standardisation folded in).
        bias: [P, H] float32.
        matrix: [P, H, H] float32.
        matrix_bias: [P, H] float32.
        head: [P, K, H] float32.
        head_bias: [P, K] float32.
        gram: [P, H, H] float32, G = basis basis^T, computed in float64 from the stored (rounded) basis.
        activation: [P, H] int32.
        threshold: [P, H] float32.
        gate_unit: [P, H] int32.
        sizes: [P, 3] int32, the true (r, m, K) of each slot.
        cpu_sizes: The same on the CPU, (0, 0, 0) for an empty slot.
        cpu_slots: The CPU path's form of the slots it has used, forgotten by `load` and `clear`.
    """

    basis: Tensor
    bias: Tensor
    matrix: Tensor
    matrix_bias: Tensor
    head: Tensor
    head_bias: Tensor
    gram: Tensor
    activation: Tensor
    threshold: Tensor
    gate_unit: Tensor
    sizes: Tensor
    cpu_sizes: list[tuple[int, int, int]] = field(default_factory=list)
    cpu_slots: dict[int, CPUSlot] = field(default_factory=dict, repr=False)

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
        """Allocate empty slots.

        Args:
            num_slots: P.
            max_width: H, the most rows a basis or a second layer may have.
            max_labels: K, the most labels a head may have.
            hidden_size: d.
            weight_dtype: Of the basis; everything else is float32.
            device: Where kernels run.

        Raises:
            ValueError: A size is below 1.
        """
        require_positive(
            num_slots=num_slots, max_width=max_width, max_labels=max_labels, hidden_size=hidden_size
        )

        def table(*shape: int, dtype: torch.dtype = torch.float32, value: float = 0) -> Tensor:
            return torch.full((num_slots, *shape), value, dtype=dtype, device=device)

        return cls(
            basis=table(max_width, hidden_size, dtype=weight_dtype),
            bias=table(max_width),
            matrix=table(max_width, max_width),
            matrix_bias=table(max_width),
            head=table(max_labels, max_width),
            head_bias=table(max_labels),
            gram=table(max_width, max_width),
            activation=table(max_width, dtype=torch.int32),
            threshold=table(max_width),
            gate_unit=table(max_width, dtype=torch.int32, value=-1),
            sizes=table(3, dtype=torch.int32),
            cpu_sizes=[(0, 0, 0)] * num_slots,
        )

    @property
    def num_slots(self) -> int:
        return self.basis.shape[0]

    @property
    def max_width(self) -> int:
        return self.basis.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.basis.shape[2]

    @property
    def max_labels(self) -> int:
        return self.head.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Every device table by name."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Device bytes held by all tables."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def load(self, slot: int, weights: SlotWeights) -> None:
        """Copy weights into a slot, in place, zero padding what they do not fill.

        Args:
            slot: 0 to num_slots - 1; what it held before is gone.
            weights: Those of one method.

        Raises:
            ValueError: A field's shape, size or values do not fit; the message names it, and the slot is
                unchanged.
        """
        self._check_slot(slot)
        given = weights.given()
        sizes = check_weights(given, (self.max_width, self.max_labels, self.hidden_size), self.basis.dtype)
        self.clear(slot)
        for name, tensor in given.items():
            place = getattr(self, name)[slot]
            place[tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)
        r = sizes[0]
        stored = self.basis[slot, :r].double()
        self.gram[slot, :r, :r].copy_(stored @ stored.T)
        self.sizes[slot] = torch.tensor(sizes, dtype=torch.int32)
        self.cpu_sizes[slot] = sizes

    def clear(self, slot: int) -> None:
        """Empty a slot; an empty slot edits nothing."""
        self._check_slot(slot)
        for table in self.tensors().values():
            table[slot].zero_()
        self.gate_unit[slot].fill_(-1)
        self.cpu_sizes[slot] = (0, 0, 0)
        self.cpu_slots.pop(slot, None)

    def cpu_slot(self, slot: int) -> CPUSlot:
        """The loaded weights of a slot for the CPU path; made at first use, which doubles its memory."""
        if slot not in self.cpu_slots:
            self.cpu_slots[slot] = self.slot_as(slot, torch.float32)
        return self.cpu_slots[slot]

    def slot_as(self, slot: int, dtype: torch.dtype) -> CPUSlot:
        """The loaded weights of a slot, unpadded, in a float dtype."""
        r, m, k = self.cpu_sizes[slot]
        return CPUSlot.of(
            basis=self.basis[slot, :r].to(dtype),
            bias=self.bias[slot, :r].to(dtype),
            matrix=self.matrix[slot, :m, :r].to(dtype),
            matrix_bias=self.matrix_bias[slot, :m].to(dtype),
            head=self.head[slot, :k, :m].to(dtype),
            head_bias=self.head_bias[slot, :k].to(dtype),
            gram=self.gram[slot, :r, :r].to(dtype),
            activation=self.activation[slot, :r],
            threshold=self.threshold[slot, :r].to(dtype),
            gate_unit=self.gate_unit[slot, :r].long(),
        )

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot: {slot} is not in 0..{self.num_slots - 1}")


def require_positive(**sizes: int) -> None:
    """Raise ValueError naming the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be at least 1, got {size}")
