"""The probe tables: the weights loaded on the device, by slot, for every method.

Nothing in here ever moves or grows after `allocate`, so captured CUDA graphs may keep the addresses.
Shapes: hidden_size d, rows of a basis r (at most the table's width H), num_labels K, slots P.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ksteer_kernels.checks import check_weights
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.weights import SlotWeights, written_rows

NO_SLOT = -1


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
        gram: [P, H, H] float32, G = basis U^T, by which an edit moves p; computed in float64 from the stored
            (rounded) rows.
        edit_gram: [P, H, H] float32, E = U U^T: s^T E s is an edit's squared Euclidean length. G but for a
            slot with a metric.
        activation: [P, H] int32.
        threshold: [P, H] float32.
        gate_unit: [P, H] int32.
        up_slot: [P] int32, the slot whose basis holds the rows U of this one; its own but for a slot loaded
            with rows `up`.
        column_scale: [P, d] float32, what the columns of those rows are multiplied by; 1 but for a slot
            loaded with a `scale`.
        sizes: [P, 3] int32, the true (r, m, K) of each slot.
        cpu_sizes: The same on the CPU, (0, 0, 0) for an empty slot.
        cpu_up_slots: up_slot on the CPU, of the slots with a metric alone.
        cpu_slots: The CPU path's form of the slots it has used, forgotten by `load` and `clear`.
    """

    basis: Tensor
    bias: Tensor
    matrix: Tensor
    matrix_bias: Tensor
    head: Tensor
    head_bias: Tensor
    gram: Tensor
    edit_gram: Tensor
    activation: Tensor
    threshold: Tensor
    gate_unit: Tensor
    up_slot: Tensor
    column_scale: Tensor
    sizes: Tensor
    cpu_sizes: list[tuple[int, int, int]] = field(default_factory=list)
    cpu_up_slots: dict[int, int] = field(default_factory=dict)
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
            edit_gram=table(max_width, max_width),
            activation=table(max_width, dtype=torch.int32),
            threshold=table(max_width),
            gate_unit=table(max_width, dtype=torch.int32, value=-1),
            up_slot=torch.arange(num_slots, dtype=torch.int32, device=device),
            column_scale=table(hidden_size, value=1),
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

    def load(self, slot: int, weights: SlotWeights, up_slot: int | None = None) -> None:
        """Copy weights into a slot, in place, zero padding what they do not fill.

        Args:
            slot: 0 to num_slots - 1; what it held before is gone.
            weights: Those of one method.
            up_slot: Another slot, for the rows `up` of weights that have them; it belongs to this one until
                both are cleared.

        Raises:
            ValueError: A field's shape, size or values do not fit; the message names it, and the slots are
                unchanged.
        """
        self._check_slot(slot)
        self._check_up_slot(slot, weights, up_slot)
        given = weights.given()
        sizes = check_weights(given, (self.max_width, self.max_labels, self.hidden_size), self.basis.dtype)
        self.clear(slot)
        scale, up = given.pop("scale", None), given.pop("up", None)
        for name, tensor in given.items():
            place = getattr(self, name)[slot]
            place[tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)
        if scale is not None:
            self.column_scale[slot].copy_(scale)
            self.cpu_up_slots[slot] = slot
        if up is not None and up_slot is not None:
            self.load(up_slot, SlotWeights(up))
            self.up_slot[slot] = up_slot
            self.cpu_up_slots[slot] = up_slot
        self.sizes[slot] = torch.tensor(sizes, dtype=torch.int32)
        self.cpu_sizes[slot] = sizes
        r = sizes[0]
        basis, written = self.basis[slot, :r].double(), self.written(slot, torch.float64)
        self.gram[slot, :r, :r].copy_(basis @ written.T)
        self.edit_gram[slot, :r, :r].copy_(written @ written.T)

    def clear(self, slot: int) -> None:
        """Empty a slot; an empty slot edits nothing."""
        self._check_slot(slot)
        for table in self.tensors().values():
            table[slot].zero_()
        self.gate_unit[slot].fill_(-1)
        self.up_slot[slot] = slot
        self.column_scale[slot].fill_(1)
        self.cpu_sizes[slot] = (0, 0, 0)
        self.cpu_up_slots.pop(slot, None)
        self.cpu_slots.pop(slot, None)

    def has_metric(self, slot: int) -> bool:
        """Whether the slot's U is another matrix than its basis."""
        return slot in self.cpu_up_slots

    def written(self, slot: int, dtype: torch.dtype) -> Tensor:
        """U [r, d] of the loaded slot, unpadded, in a float dtype: x' = x - U^T s."""
        return written_rows(*self._rows(slot, dtype))

    def cpu_slot(self, slot: int) -> CPUSlot:
        """The loaded weights of a slot for the CPU path; made at first use, which doubles its memory."""
        if slot not in self.cpu_slots:
            self.cpu_slots[slot] = self.slot_as(slot, torch.float32)
        return self.cpu_slots[slot]

    def slot_as(self, slot: int, dtype: torch.dtype) -> CPUSlot:
        """The loaded weights of a slot, unpadded, in a float dtype."""
        r, m, k = self.cpu_sizes[slot]
        basis, scale, up = self._rows(slot, dtype)
        return CPUSlot.of(
            basis=basis,
            scale=scale,
            up=up,
            bias=self.bias[slot, :r].to(dtype),
            matrix=self.matrix[slot, :m, :r].to(dtype),
            matrix_bias=self.matrix_bias[slot, :m].to(dtype),
            head=self.head[slot, :k, :m].to(dtype),
            head_bias=self.head_bias[slot, :k].to(dtype),
            gram=self.gram[slot, :r, :r].to(dtype),
            edit_gram=self.edit_gram[slot, :r, :r].to(dtype) if self.has_metric(slot) else None,
            activation=self.activation[slot, :r],
            threshold=self.threshold[slot, :r].to(dtype),
            gate_unit=self.gate_unit[slot, :r].long(),
        )

    def _rows(self, slot: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(basis, scale, up) of `written_rows`."""
        r, up_slot = self.cpu_sizes[slot][0], self.cpu_up_slots.get(slot)
        basis = self.basis[slot, :r].to(dtype)
        if up_slot is None:
            return basis, None, None
        if up_slot == slot:
            return basis, self.column_scale[slot].to(dtype), None
        return basis, None, self.basis[up_slot, :r].to(dtype)

    def _check_slot(self, slot: int, name: str = "slot") -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"{name}: {slot} is not in 0..{self.num_slots - 1}")

    def _check_up_slot(self, slot: int, weights: SlotWeights, up_slot: int | None) -> None:
        if up_slot is None:
            if weights.up is not None:
                raise ValueError("up_slot: missing, and the weights have rows `up`")
            return
        if weights.up is None:
            raise ValueError(f"up_slot: {up_slot}, but the weights have no rows `up`")
        self._check_slot(up_slot, "up_slot")
        if up_slot == slot:
            raise ValueError(f"up_slot: {up_slot} is the slot itself")


def require_positive(**sizes: int) -> None:
    """Raise ValueError naming the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be at least 1, got {size}")
