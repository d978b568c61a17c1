"""Splitting labelled rows by conversation, never by token."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ksteer_vllm.errors import listing
from ksteer_vllm.fit.data import DataError, Message

__all__ = ["MIN_ROWS", "SplitPlan", "check_labels", "conversations_of", "prompt_key", "split_conversations"]

MIN_ROWS = 10
"""Rows a label must have on each side, shown and not shown."""

_ATTEMPTS = 50


class SplitPlan(BaseModel):
    """What every method's plan has: how the rows are split, and the seed of all that is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    seed: int = 0


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """Rows of the same question belong together, whatever the system message asks for."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([message.model_dump() for message in prompt if message.role != "system"])


def check_labels(targets: Tensor, labels: Sequence[str]) -> None:
    """Raise DataError for a label that fewer than MIN_ROWS rows show, or lack. targets: [rows, K]."""
    rows = len(targets)
    for positives, label in zip(targets.sum(0).long().tolist(), labels, strict=True):
        for count, side in ((positives, "with"), (rows - positives, "without")):
            if count < MIN_ROWS:
                raise DataError(
                    f"labels: {count or 'no'} row{'' if count == 1 else 's'} {side} {label!r}; "
                    f"at least {MIN_ROWS} are needed (labels: {listing(labels)}; rows: {rows})"
                )


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
