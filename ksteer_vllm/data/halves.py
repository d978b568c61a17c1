"""A task's conversations in two halves, and prompts that are in neither."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ksteer_vllm.data.rows import LabelledRow, Prompt
from ksteer_vllm.data.split import (
    MIN_ROWS,
    check_labels,
    conversations_of,
    prompt_key,
    targets_of,
    without_system,
)
from ksteer_vllm.errors import DataError

__all__ = ["PROMPT_PARTS", "PROMPT_SHARE", "Partition", "partition_rows"]

PROMPT_PARTS: Final = ("calibration", "evaluation")
PROMPT_SHARE: Final = 0.1
"""Share of the conversations set aside for each of the two kinds of prompts."""

_ATTEMPTS = 200


@dataclass(frozen=True)
class Partition:
    """Halves of a task's rows, and prompts that are in neither. No conversation is in two of these.

    Attributes:
        steering: Rows the methods are fitted to.
        evaluation: Rows the evaluation probe is fitted to.
        prompts: `calibration` and `evaluation` prompts, without system messages.
    """

    steering: tuple[LabelledRow, ...]
    evaluation: tuple[LabelledRow, ...]
    prompts: Mapping[str, tuple[Prompt, ...]]


def partition_rows(
    rows: Sequence[LabelledRow],
    labels: Sequence[str],
    prompts: Mapping[str, Sequence[Prompt]],
    seed: int,
) -> Partition:
    """Split rows by conversation (`split.prompt_key`), so that both halves have enough rows of each label.

    Args:
        rows: Labelled text.
        labels: The labels both halves need.
        prompts: The calibration and evaluation prompts that the task brings; rows that ask the same are in
            neither half. If there are none, a tenth of the conversations is set aside for each kind.
        seed: Seed of the split.

    Raises:
        DataError: If a half cannot have MIN_ROWS rows with each label, and as many without.
    """
    keys = [prompt_key(row.prompt) for row in rows]
    brought = {prompt_key(without_system(prompt)) for found in prompts.values() for prompt in found}
    names = keys if not prompts else conversations_of(keys)
    free = [index for index, key in enumerate(keys) if key not in brought]
    members: dict[str, list[int]] = {}
    for index in free:
        members.setdefault(names[index], []).append(index)
    check_labels(targets_of(rows, labels), labels, least=2 * MIN_ROWS, rows=rows)
    aside = 0 if prompts else max(1, round(PROMPT_SHARE * len(members)))
    order = list(members)
    rng = random.Random(seed)
    lacking: Counter[str] = Counter()
    for _ in range(_ATTEMPTS):
        rng.shuffle(order)
        rest = order[2 * aside :]
        halves = [
            sorted(index for name in half for index in members[name])
            for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :])
        ]
        short = [label for half in halves for label in labels if _count(rows, half, label) < MIN_ROWS]
        if not short:
            chosen = {part: order[n * aside : (n + 1) * aside] for n, part in enumerate(PROMPT_PARTS)}
            taken = {
                part: tuple(without_system(rows[members[name][0]].prompt) for name in group)
                for part, group in chosen.items()
            }
            given = {part: tuple(map(without_system, found)) for part, found in prompts.items()}
            steering, evaluation = (tuple(rows[index] for index in half) for half in halves)
            return Partition(steering, evaluation, given or taken)
        lacking.update(short)
    raise DataError(
        f"labels: the {len(members)} conversations cannot be split so that both halves have {MIN_ROWS} rows "
        f"with and {MIN_ROWS} without {lacking.most_common(1)[0][0]!r}; add rows of other prompts, or leave "
        "the label out (--labels)"
    )


def _count(rows: Sequence[LabelledRow], indices: Sequence[int], label: str) -> int:
    """Rows with the label or rows without it, whichever is less."""
    shown = sum(label in rows[index].labels for index in indices)
    return min(shown, len(indices) - shown)
