"""The CPU path: a few large torch calls per planned group of tokens that share a slot and a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ksteer_kernels.hidden.affine import condition_program
from ksteer_kernels.hidden.finish import edit_length, finish
from ksteer_kernels.hidden.gradient import logits_of
from ksteer_kernels.hidden.naive import run_program, steps_taken
from ksteer_kernels.packed import CPUSlot
from ksteer_kernels.settings import Flag, Program
from ksteer_kernels.steer.plain import plain_edit_, subtract_, take_tokens
from ksteer_kernels.steer.plan import PlannedGroup
from ksteer_kernels.tables import ProbeTables


@dataclass(frozen=True)
class EditRecord:
    """What a stage did to some tokens, for reports; tensors are on the device of hidden.

    Attributes:
        slot: Of their rows.
        tokens: [n] int64 token indices.
        shift: [n] float32, |x' - x| / |x|; NaN where the edit was dropped, infinite where beyond float32.
        steps: [n] int32; -1 where a program has none, DROPPED where the edit was dropped.
        before: [n, K] float32, the logits of the slot's probe at x; None for a slot without a head.
        after: The same at x'.
    """

    slot: int
    tokens: Tensor
    shift: Tensor
    steps: Tensor
    before: Tensor | None
    after: Tensor | None


Recorder = Callable[[EditRecord], None]


def steer_groups_(
    hidden: Tensor,
    residual: Tensor | None,
    probes: ProbeTables,
    groups: list[PlannedGroup],
    is_open: Tensor | None = None,
    record: Recorder | None = None,
    *,
    use_native: bool = True,
    count_dropped: Callable[[int], None] | None = None,
) -> Tensor | None:
    """Edit the tokens of one stage's groups in place; float32 throughout, one rounding at the end.

    An empty slot edits nothing and opens nothing.

    Args:
        hidden: [T, d], any float dtype; written to.
        residual: [T, d] or None; the residual stream is x = hidden + residual.
        probes: What is loaded, by slot.
        groups: Of `plan_groups`, for this layer and stage.
        is_open: [T] bool, what the stage before returned.
        record: Called for groups with REPORT tokens.
        use_native: Let plain gradient steps run in the native kernel, where there is one.
        count_dropped: Called with the number of a group's tokens whose edit was dropped, because their
            activations or their edit were not finite.

    Returns:
        The is_open of the next stage if a group was a CONDITION, else None.
    """
    opened: Tensor | None = None
    for group in groups:
        if not probes.cpu_sizes[group.slot][0]:
            continue
        slot = probes.cpu_slot(group.slot)
        if group.plain:
            if group.program == Program.ADD or probes.cpu_sizes[group.slot][1]:
                dropped = plain_edit_(hidden, residual, group, slot, use_native)
                if dropped and count_dropped is not None:
                    count_dropped(dropped)
            continue
        x = take_tokens(hidden, group).float()
        if residual is not None:
            x = x + take_tokens(residual, group)
        p, square = slot.first(x), (x * x).sum(1)
        if group.program == Program.CONDITION:
            if opened is None:
                opened = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
            before = None if is_open is None else is_open[group.tokens]
            opened[group.tokens] = condition_program(p, square, slot, group.settings, before)
            continue
        dropped = _general(hidden, group, x, p, square, slot, is_open, record)
        if dropped and count_dropped is not None:
            count_dropped(dropped)
    return opened


def _general(
    hidden: Tensor,
    group: PlannedGroup,
    x: Tensor,
    p: Tensor,
    square: Tensor,
    slot: CPUSlot,
    is_open: Tensor | None,
    record: Recorder | None,
) -> int:
    """Any program with any setting. Returns how many tokens' edits were dropped."""
    settings = group.settings
    now_open = None if is_open is None else is_open[group.tokens]
    s, steps = run_program(group.program, p, slot, settings)
    s, keep, dropped = finish(s, p, square, slot, group.program, settings, now_open)
    edit = slot.first_back(s) + 0.0  # no -0.0: a zero edit keeps the sign of a zero, too
    if bool((keep != 1).any()):
        edit = torch.where((keep == 1)[:, None], edit, keep[:, None] * edit + (1 - keep)[:, None] * x)
    subtract_(hidden, group, edit)
    wanted = settings.has(Flag.REPORT)
    if record is not None and bool(wanted.any()):
        record(_record(group, wanted, s, keep, p, square, slot, steps, now_open, dropped))
    return int(dropped.sum())


def _record(
    group: PlannedGroup,
    wanted: Tensor,
    s: Tensor,
    keep: Tensor,
    p: Tensor,
    square: Tensor,
    slot: CPUSlot,
    steps: Tensor | None,
    is_open: Tensor | None,
    dropped: Tensor,
) -> EditRecord:
    count = steps_taken(steps, group.settings, is_open, dropped)
    before = after = None
    if slot.head.weight.numel():
        before = logits_of(p + slot.bias, slot)[wanted]
        after = logits_of(keep[:, None] * (p - slot.gram(s)) + slot.bias, slot)[wanted]
    length = edit_length(s, keep, p, square, slot)
    shift = torch.where(square > 0, length / square.sqrt(), torch.zeros_like(length))
    shift = torch.where(torch.isnan(shift), torch.full_like(shift, torch.inf), shift)
    shift = torch.where(dropped, torch.full_like(shift, torch.nan), shift)
    return EditRecord(group.slot, group.tokens[wanted], shift[wanted], count[wanted], before, after)
