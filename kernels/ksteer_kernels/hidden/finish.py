"""What is done to every program's s: fading, the condition's gate, the cap and norm preservation.

|edit|^2 = s^T E s          x.edit = -s.p         |x'|^2 = |x|^2 - 2 s.p + s^T E s,   x' = x - U^T s

E = U U^T is G but for a slot with a metric, where lengths stay Euclidean and no norm is preserved: there
x.edit is not -s.p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ksteer_kernels.hidden.token_settings import TokenSettings
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.settings import Flag, Program


def shut_out(settings: TokenSettings, is_open: Tensor | None) -> Tensor:
    """[n] bool: GATED, and the stage before did not open; is_open [n] bool, None: it opened for nobody."""
    gated = settings.has(Flag.GATED)
    return gated if is_open is None else gated & ~is_open


def finish(
    s: Tensor,
    p: Tensor | None,
    square: Tensor | None,
    slot: CPUSlot,
    program: Program,
    settings: TokenSettings,
    is_open: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(s [n, r], keep [n], dropped [n] bool): x' = keep * (x - U^T s), keep is 1 but for PRESERVE_NORM.

    p [n, r] and square = |x|^2 [n] may be None where no token is capped or keeps its norm.
    is_open: see `shut_out`.
    Gradient steps have faded already. A token whose s or p is not finite is not edited; it is dropped, unless
    a condition shut it out. ADD does not look at p.
    """
    if settings.gain is not None and program != Program.GRADIENT:
        s = s * settings.gain.to(s)[:, None]
    shut = shut_out(settings, is_open)
    if bool(shut.any()):
        s = torch.where(shut[:, None], torch.zeros_like(s), s)
    keep = torch.ones_like(s[:, 0])
    capped, preserved = torch.isfinite(settings.cap), settings.has(Flag.PRESERVE_NORM)
    if bool((capped | preserved).any()):
        assert p is not None
        assert square is not None
        x_square = square.to(s)
        edit_square = (slot.edit_gram(s) * s).sum(1).clamp_min(0)
        room = settings.cap.to(s) * x_square.sqrt()
        share = torch.where(capped & (edit_square > room * room), room / edit_square.sqrt(), 1.0)
        s = s * share[:, None]
        moved = x_square - 2 * (s * p).sum(1) + edit_square * share * share
        keep = torch.where(
            preserved & (moved > 0), (x_square / torch.where(moved > 0, moved, 1.0)).sqrt(), keep
        )
    sound = torch.isfinite(s).all(1) & torch.isfinite(keep)
    if program != Program.ADD:
        assert p is not None
        sound = sound & torch.isfinite(p).all(1)
    s = torch.where(sound[:, None], s, torch.zeros_like(s))
    return s, torch.where(sound, keep, torch.ones_like(keep)), ~(sound | shut)


def edit_length(s: Tensor, keep: Tensor, p: Tensor, square: Tensor, slot: CPUSlot) -> Tensor:
    """|x' - x| [n] of x' = keep * (x - U^T s), in the space of the basis."""
    x_square = square.to(s)
    edit_square = (slot.edit_gram(s) * s).sum(1).clamp_min(0)
    off = keep - 1
    # |off x - keep U^T s|^2
    total = off * off * x_square - 2 * off * keep * (s * p).sum(1) + keep * keep * edit_square
    return total.clamp_min(0).sqrt()
