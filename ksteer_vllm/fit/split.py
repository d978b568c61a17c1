"""Splitting labelled rows by conversation, never by token."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from ksteer_vllm.fit.data import DataError

__all__ = ["MIN_ROWS", "conversations_of", "split_conversations"]

MIN_ROWS = 10
"""Rows a label must have on each side, shown and not shown."""

_ATTEMPTS = 50


def conversations_of(prompts: Sequence[str]) -> list[str]:
    """What each row must stay together with: the rows of the same prompt, where there are enough prompts."""
    if len(set(prompts)) >= 3 * MIN_ROWS:
        return list(prompts)
    return [str(index) for index in range(len(prompts))]


def split_conversations(
    conversation: Sequence[str], targets: Tensor, validation_share: float, test_share: float, seed: int
) -> dict[str, list[int]]:
    """Row indices of `train`, `validation` and `test`; no conversation is in two of them.

    targets: [rows, K]. Drawn again, from the same seed, until every part has every label both shown and
    not shown. Raises DataError if that never happens.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(conversation):
        members[name].append(index)
    names = list(members)
    rng = random.Random(seed)
    sizes = {
        "validation": max(1, round(validation_share * len(names))),
        "test": max(1, round(test_share * len(names))),
    }
    for _ in range(_ATTEMPTS):
        rng.shuffle(names)
        end = sizes["validation"] + sizes["test"]
        chosen = {
            "train": names[end:],
            "validation": names[: sizes["validation"]],
            "test": names[sizes["validation"] : end],
        }
        parts = {part: sorted(i for name in group for i in members[name]) for part, group in chosen.items()}
        if all(rows and _both_sides(targets[rows]) for rows in parts.values()):
            return parts
    raise DataError(
        f"the {len(names)} conversations cannot be split so that training, validation and test each show "
        "and lack every label; add rows for the rarer labels"
    )


def _both_sides(targets: Tensor) -> bool:
    shown = targets.sum(0)
    return bool(((shown > 0) & (shown < len(targets))).all())
