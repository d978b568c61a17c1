"""The residual stream at many positions: too large for memory, perhaps, and read in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["BLOCK_BYTES", "Stream"]

BLOCK_BYTES = 64 << 20
"""Most bytes of float32 that are read at once."""


@dataclass(frozen=True)
class Stream:
    """N vectors of d numbers, float32.

    pieces: [n_i, d] each, in memory or memory-mapped from files. index: [N] int64, which of the pieces'
    vectors, ascending; None: all. mean, std: [d] each, if what is read is (x - mean) / std.
    """

    pieces: tuple[Tensor, ...]
    index: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor | Stream) -> Stream:
        """A tensor [N, d] as a stream; a stream as it is."""
        return x if isinstance(x, Stream) else cls((x,))

    def __len__(self) -> int:
        return sum(map(len, self.pieces)) if self.index is None else len(self.index)

    @property
    def hidden_size(self) -> int:
        return self.pieces[0].shape[1]

    def select(self, keep: Tensor) -> Stream:
        """The vectors for which `keep`, [N] bool, is true."""
        chosen = keep.nonzero()[:, 0]
        return replace(self, index=chosen if self.index is None else self.index[chosen])

    def standardised(self, mean: Tensor, std: Tensor) -> Stream:
        """The same vectors, read as (x - mean) / std; mean, std [d]."""
        return replace(self, mean=mean, std=std)

    def take(self, chosen: Tensor) -> Tensor:
        """The vectors at chosen [n] int64, in that order: [n, d] float32."""
        return self._read(chosen if self.index is None else self.index[chosen])

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All vectors in order: each time a range of them and the vectors, [n, d] float32, n >= 1."""
        size = max(1, BLOCK_BYTES // (4 * self.hidden_size))
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            if self.index is None and len(self.pieces) == 1:
                yield where, self._scaled(self.pieces[0][where].float())
            else:
                yield where, self.take(torch.arange(where.start, where.stop))

    def map(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """function of every block, [n, d] -> [n, ...], joined."""
        return torch.cat([function(block) for _, block in self.blocks()])

    def tensor(self) -> Tensor:
        """Everything at once, [N, d] float32."""
        if self.index is None and len(self.pieces) == 1:
            return self._scaled(self.pieces[0].float())
        return self.take(torch.arange(len(self)))

    def _read(self, index: Tensor) -> Tensor:
        if len(self.pieces) == 1:
            return self._scaled(self.pieces[0][index].float(), fresh=True)
        ends = torch.tensor([len(piece) for piece in self.pieces]).cumsum(0)
        of_piece = torch.searchsorted(ends, index, right=True)
        found = torch.empty(len(index), self.hidden_size)
        for number in of_piece.unique().tolist():
            here = of_piece == number
            first = ends[number] - len(self.pieces[number])
            found[here] = self.pieces[number][index[here] - first].float()
        return self._scaled(found, fresh=True)

    def _scaled(self, x: Tensor, *, fresh: bool = False) -> Tensor:
        """fresh: x is nobody else's."""
        if self.mean is None or self.std is None:
            return x
        return (x.sub_(self.mean) if fresh else x - self.mean).div_(self.std)
