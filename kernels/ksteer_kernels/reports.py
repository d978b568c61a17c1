"""What the Triton backend reports of edits: persistent buffers that a captured CUDA graph writes into."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ksteer_kernels.tables import require_positive


@dataclass
class ReportBuffers:
    """What every edit with Flag.REPORT did to its token, by entry (layer and stage) and token of the step.

    A layer's tokens of the step are overwritten in each of its stages; what lies beyond is left as it was.

    Attributes:
        steps: [N, T] int32; gradient steps taken, 0 where a condition shut the token out, DROPPED where the
            edit was dropped, -1 for another program.
        shift: [N, T] float32; |x' - x| / |x|, NaN where the edit was dropped; -1, and steps -1, where nothing
            was edited that is reported.
        before: [N, T, K] float32; the logits of the slot's probe at x, in as many places as it has labels.
        after: The same at x'.
    """

    steps: Tensor
    shift: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def allocate(
        cls, num_entries: int, max_tokens: int, num_labels: int, device: torch.device | str
    ) -> ReportBuffers:
        """Allocate buffers.

        Args:
            num_entries: N, as the row tables'.
            max_tokens: Tokens of the largest step, padding included.
            num_labels: K, as the slots'.
            device: Where kernels run.

        Raises:
            ValueError: A size is below 1.
        """
        require_positive(num_entries=num_entries, max_tokens=max_tokens, num_labels=num_labels)
        shape = (num_entries, max_tokens)
        return cls(
            steps=torch.full(shape, -1, dtype=torch.int32, device=device),
            shift=torch.full(shape, -1.0, device=device),
            before=torch.zeros(*shape, num_labels, device=device),
            after=torch.zeros(*shape, num_labels, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Device bytes held."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def require(self, num_entries: int, num_tokens: int, num_labels: int) -> None:
        """Raise ValueError unless so many entries, tokens and labels fit."""
        room, need = tuple(self.before.shape), (num_entries, num_tokens, num_labels)
        if any(n > limit for n, limit in zip(need, room, strict=True)):
            raise ValueError(
                "reports: room for {} entries, {} tokens, {} labels, ".format(*room)
                + "need {}, {}, {}".format(*need)
            )
