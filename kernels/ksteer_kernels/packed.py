"""A slot's weights in the form the CPU path multiplies fastest, made once per loaded slot.

torch sends float32 GEMMs of a few rows to a general BLAS; oneDNN with weights packed beforehand takes half
the time from about 16 rows on. Its operators are those that torch's own compiler emits for CPUs. Where they
are missing, everything runs through torch's plain GEMM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ksteer_kernels.native import NativeSlot
from ksteer_kernels.weights import written_rows

PACKED_FROM_ROWS = 16
"""With fewer rows the plain GEMM, which also writes in place, is faster than a packed one."""

WIDE_PACKED_FROM_ROWS = 6
"""The same for the two projections between hidden_size and a basis, which are larger."""

WHOLE_UP_TO_ROWS = 32
"""Products of more rows are put together from pieces of 64, 128, 256, … rows and one of at most 32: oneDNN
keeps a kernel for every number of rows it has met, hundreds of MiB after prompts of many lengths."""

_CAN_PACK = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
)


@cache
def pieces(num_rows: int) -> tuple[int, ...]:
    """The sizes that a product of so many rows is put together from."""
    sizes, piece = [], 1 << max(num_rows, 1).bit_length()
    while num_rows > WHOLE_UP_TO_ROWS:
        piece //= 2
        if piece <= num_rows:
            sizes.append(piece)
            num_rows -= piece
    return (*sizes, num_rows) if num_rows else tuple(sizes)


class Linear:
    """x @ weight.T + bias for x [n, k] and a fixed weight [m, k], in the weight's float dtype.

    packed_from: rows from which the packed form is used.
    """

    def __init__(self, weight: Tensor, packed_from: int = PACKED_FROM_ROWS) -> None:
        self.weight = weight
        self.transposed = weight.T
        self.packed_from = packed_from
        self.packed: Tensor | None = None
        self._negative: Tensor | None = None
        packable = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0
        if _CAN_PACK and packable:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The product [n, m]; in `out` where that is possible."""
        if self.packed is not None and x.shape[0] >= self.packed_from:
            return self._in_pieces(lambda piece, _: self._product(piece, bias, "none"), x)
        if bias is None:
            return torch.mm(x, self.transposed, out=out)
        return torch.addmm(bias, x, self.transposed, out=out)

    def relu(self, x: Tensor, bias: Tensor) -> Tensor:
        """relu of the product [n, m]."""
        if self.packed is not None and x.shape[0] >= self.packed_from:
            return self._in_pieces(lambda piece, _: self._product(piece, bias, "relu"), x)
        return torch.addmm(bias, x, self.transposed).clamp_min_(0)

    def subtract_from(self, z: Tensor, x: Tensor) -> Tensor:
        """z - x @ weight.T, [n, m]."""
        if self.packed is None or x.shape[0] < self.packed_from:
            return torch.addmm(z, x, self.transposed, alpha=-1)
        return self._in_pieces(self._difference, x, z)

    def subtract_from_(self, z: Tensor, x: Tensor) -> None:
        """z <- z - x @ weight.T, in place."""
        if self.packed is not None and x.shape[0] >= self.packed_from:
            z.sub_(self(x))
        else:
            z.addmm_(x, self.transposed, alpha=-1)

    def _in_pieces(
        self, product: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, z: Tensor | None = None
    ) -> Tensor:
        if x.shape[0] <= WHOLE_UP_TO_ROWS:
            return product(x, z)
        sizes = pieces(x.shape[0])
        addends = [None] * len(sizes) if z is None else z.split(sizes)
        return torch.cat([product(*pair) for pair in zip(x.split(sizes), addends, strict=True)])

    def _product(self, x: Tensor, bias: Tensor | None, then: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, then, [], "")

    def _difference(self, x: Tensor, z: Tensor | None) -> Tensor:
        if self._negative is None:  # a second packed copy, for the one product that needs it
            self._negative = torch.ops.mkldnn._reorder_linear_weight((-self.weight).contiguous())
        return torch.ops.mkldnn._linear_pointwise.binary(x, z, self._negative, None, "add")


@dataclass(frozen=True)
class CPUSlot:
    """One slot at its true sizes r, m, K.

    first: d -> r by the basis, and back by U^T; second: r -> m, and back; head: m -> K, and back.
    gram: r -> r by G = basis U^T; edit_gram: r -> r by E = U U^T, the same object unless there is a metric.
    scale [d], up [r, d]: of the metric, as in `SlotWeights`.
    bias, threshold [r], matrix_bias [m], head_bias [K] float; activation, gate_unit [r] int.
    """

    first: Linear
    first_back: Linear
    second: Linear
    second_back: Linear
    head: Linear
    head_back: Linear
    gram: Linear
    edit_gram: Linear
    scale: Tensor | None
    up: Tensor | None
    bias: Tensor
    matrix_bias: Tensor
    head_bias: Tensor
    activation: Tensor
    threshold: Tensor
    gate_unit: Tensor

    @cached_property
    def native(self) -> NativeSlot:
        """What the native kernel reads of the slot."""
        return NativeSlot(self)

    @classmethod
    def of(
        cls,
        *,
        basis: Tensor,
        bias: Tensor,
        matrix: Tensor,
        matrix_bias: Tensor,
        head: Tensor,
        head_bias: Tensor,
        gram: Tensor,
        activation: Tensor,
        threshold: Tensor,
        gate_unit: Tensor,
        scale: Tensor | None = None,
        up: Tensor | None = None,
        edit_gram: Tensor | None = None,
    ) -> CPUSlot:
        """Of one float dtype: basis [r, d], bias [r], matrix [m, r], head [K, m], gram [r, r], …;
        edit_gram [r, r] with a scale or up."""
        hidden_gram = Linear(gram)
        return cls(
            first=Linear(basis, WIDE_PACKED_FROM_ROWS),
            first_back=Linear(written_rows(basis, scale, up).T, WIDE_PACKED_FROM_ROWS),
            second=Linear(matrix),
            second_back=Linear(matrix.T),
            head=Linear(head),
            head_back=Linear(head.T),
            gram=hidden_gram,
            edit_gram=hidden_gram if edit_gram is None else Linear(edit_gram),
            scale=scale,
            up=up,
            bias=bias,
            matrix_bias=matrix_bias,
            head_bias=head_bias,
            activation=activation,
            threshold=threshold,
            gate_unit=gate_unit,
        )
