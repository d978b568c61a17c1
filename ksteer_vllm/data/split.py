"""Splitting labelled rows by conversation, never by token."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ksteer_vllm.data.rows import LabelledRow, Message, Prompt, row_number
from ksteer_vllm.errors import DataError, listing

__all__ = [
    "MIN_ROWS",
    "check_labels",
    "conversations_of",
    "prompt_key",
    "split_conversations",
    "targets_of",
    "without_instruction",
    "without_system",
]

MIN_ROWS = 10
"""Rows a label must have on each side, shown and not shown."""

_ATTEMPTS = 50


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """Rows of the same question belong together, whatever the system message asks for."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([message.model_dump() for message in prompt if message.role != "system"])


def without_instruction(row: LabelledRow) -> LabelledRow:
    """The row without the system messages of a chat that has others: they may ask for its labels."""
    return row.model_copy(update={"prompt": without_system(row.prompt)})


def without_system(prompt: Prompt) -> Prompt:
    """A chat without its system messages, if it has others; a text as it is."""
    if isinstance(prompt, str):
        return prompt
    return tuple(message for message in prompt if message.role != "system") or prompt


def targets_of(rows: Sequence[LabelledRow], labels: Sequence[str]) -> Tensor:
    """Which rows show which labels.

    Args:
        rows: The rows.
        labels: K names.

    Returns:
        [rows, K] float32: 1 where a row shows a label, else 0.
    """
    return torch.tensor([[float(label in row.labels) for label in labels] for row in rows])


def check_labels(
    targets: Tensor, labels: Sequence[str], least: int = MIN_ROWS, *, rows: Sequence[LabelledRow] = ()
) -> None:
    """Raise DataError for a label that fewer than `least` rows show, or lack.

    Args:
        targets: [rows, K], 1 where a row shows a label.
        labels: K names.
        least: Fewest rows with each label, and without it.
        rows: The rows themselves, so that messages can name them; empty: they are numbered.
    """
    numbers = [row_number(row, index) for index, row in enumerate(rows)] or range(1, len(targets) + 1)
    for shown, label in zip(targets.bool().T, labels, strict=True):
        for side, found in (("with", shown), ("without", ~shown)):
            which = found.nonzero().flatten().tolist()
            if len(which) >= least:
                continue
            count = f"{len(which)} rows" if len(which) > 1 else "1 row" if which else "no row"
            named = dict.fromkeys(numbers[index] for index in which)
            where = f" (row {listing(named, 10)})" if named else ""
            raise DataError(
                f"labels: {count} {side} {label!r}{where}; at least {least} are needed (labels: "
                f"{listing(labels)}; rows: {len(targets)}): add rows, or leave the label out (--labels)"
            )


def conversations_of(prompts: Sequence[str]) -> list[str]:
    """The group each row stays with: the rows of the same prompt, where there are enough prompts."""
    if len(set(prompts)) >= 3 * MIN_ROWS:
        return list(prompts)
    return [str(index) for index in range(len(prompts))]


def split_conversations(
    conversation: Sequence[str], targets: Tensor, validation_share: float, test_share: float, seed: int
) -> dict[str, list[int]]:
    """Row indices of `train`, `validation` and `test`; no conversation is in two of them.

    The split is drawn again until every part has rows with and without each label.

    Args:
        conversation: For each row, the conversation it stays with.
        targets: [rows, K], 1 where a row shows a label.
        validation_share, test_share: Shares of the conversations, 0 to 1.
        seed: Seed of the split; the same seed gives the same one.

    Raises:
        DataError: If no such split is found.
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
