"""What a request may ask of any edit: a cap, and keeping the norm."""

from __future__ import annotations

import torch
from torch import Tensor


def cap(x: Tensor, edited: Tensor, rho: float) -> Tensor:
    """The edit shortened, where it is longer, to rho * |x|."""
    edit = edited - x
    length, room = edit.norm(dim=1, keepdim=True), rho * x.norm(dim=1, keepdim=True)
    return torch.where(length > room, x + edit * (room / length), edited)


def preserve_norm(x: Tensor, edited: Tensor) -> Tensor:
    """edited, scaled to the norm of x; a zero vector is left alone."""
    length = edited.norm(dim=1, keepdim=True)
    return torch.where(length > 0, edited * (x.norm(dim=1, keepdim=True) / length), edited)
