"""What of a step does not depend on the activations: which tokens go together, and their settings.

Make a plan once per step and entry. It copies the rows' settings, so it is stale as soon as token_row, gain
or the row tables change.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.hidden.token_settings import TokenSettings
from ksteer_kernels.native import UP_TO_ROWS, native_group
from ksteer_kernels.settings import Program, RowTables


@dataclass(frozen=True)
class PlannedGroup:
    """One group of tokens, ready to run.

    tokens: [n] int64 token indices, ascending; span: (start, stop) if they are consecutive, else None.
    settings: every token's. plain: nothing but gradient steps of the mean loss, or constants.
    scaled: of plain gradient steps, the readout times the step's size, one [n, W] float32 tensor per step
        (equal consecutive steps share one), made on demand for many tokens; of a plain ADD, its s alone.
    """

    slot: int
    program: Program
    tokens: Tensor
    span: tuple[int, int] | None
    settings: TokenSettings
    plain: bool
    scaled: Sequence[Tensor]

    @cached_property
    def native(self) -> array[int]:
        """What the native kernel reads of a plain group of gradient steps."""
        return native_group(self)


def plan_groups(
    token_row: Tensor, rows: RowTables, entry: int, num_tokens: int, gain: Tensor | None = None
) -> list[PlannedGroup]:
    """Group the active tokens for one entry; empty when nobody is steered. Reads the tables on the CPU.

    Args:
        token_row: [>= num_tokens] int32, the request row of each token, -1: unsteered.
        rows: What is asked for.
        entry: layer * num_stages + stage.
        num_tokens: How many tokens to look at.
        gain: [>= num_tokens] float32, what is left of a fading strength; None: all of it.
    """
    planned = []
    for group in active_groups(token_row, rows, entry, num_tokens):
        tokens = group.tokens
        settings = TokenSettings.of(rows, entry, group.rows, None if gain is None else gain[tokens])
        plain = (
            group.program in (Program.GRADIENT, Program.ADD)
            and not bool(settings.flags.any())
            and not bool(torch.isfinite(settings.cap).any())
            and not settings.needs_logits
        )
        scaled: Sequence[Tensor] = ()
        if plain:
            scaled = _scaled_readouts(group.program, settings)
        first, last = int(tokens[0]), int(tokens[-1])
        span = (first, last + 1) if last + 1 - first == tokens.numel() else None
        planned.append(PlannedGroup(group.slot, group.program, tokens, span, settings, plain, scaled))
    return planned


class Readouts(Sequence[Tensor]):
    """a_t u [n, W] for t < max(num_steps), made when asked for: a long prompt with many steps of different
    sizes would fill gigabytes. a_t = strength * gain * decay**t while t < num_steps, 0 afterwards."""

    def __init__(self, settings: TokenSettings) -> None:
        size = settings.faded_strength
        step = torch.arange(int(settings.num_steps.max()), device=size.device)[:, None]
        decayed = size * settings.decay ** step.to(size.dtype)
        self.sizes = torch.where(step < settings.num_steps, decayed, 0.0)
        self.readout = settings.readout
        self.repeats = [False, *(self.sizes[1:] == self.sizes[:-1]).all(1).tolist()]

    def __len__(self) -> int:
        return len(self.repeats)

    def __getitem__(self, t: Any) -> Any:
        return self.sizes[t][:, None] * self.readout

    def __iter__(self) -> Iterator[Tensor]:
        """Equal consecutive steps get one tensor."""
        scaled = self[0]
        for t, repeat in enumerate(self.repeats):
            if t > 0 and not repeat:
                scaled = self[t]
            yield scaled


def _scaled_readouts(program: Program, settings: TokenSettings) -> Sequence[Tensor]:
    """What a plain group's steps multiply by; of ADD -strength * gain * readout."""
    if program == Program.ADD:
        return (-settings.faded_strength[:, None] * settings.readout,)
    readouts = Readouts(settings)
    return tuple(readouts) if len(settings.strength) <= UP_TO_ROWS else readouts
