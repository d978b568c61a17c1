"""Which labels are asked for together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations as draw
from typing import Literal, get_args

from ksteer_vllm.errors import UsageError

__all__ = ["Avoid", "avoided", "combinations", "name_of", "size_name"]

Avoid = Literal["rest", "none"]


def combinations(labels: Sequence[str], sizes: Collection[int]) -> list[tuple[str, ...]]:
    """Every combination of the sizes, smallest first, in the labels' order.

    Raises UsageError for a size there are not enough labels for.
    """
    found: list[tuple[str, ...]] = []
    for size in sorted(set(sizes)):
        if not 1 <= size <= len(labels):
            raise UsageError(f"sizes: {size} of {len(labels)} labels; allowed: 1 to {len(labels)}")
        found += draw(labels, size)
    return found


def avoided(labels: Sequence[str], target: Collection[str], avoid: Avoid = "rest") -> tuple[str, ...]:
    """The labels to move away from.

    Args:
        labels: All there are.
        target: Those to move towards.
        avoid: `rest`: all others; `none`: none.

    Raises:
        UsageError: For another value of `avoid`.
    """
    if avoid not in get_args(Avoid):
        raise UsageError(f"avoid: {avoid!r}; allowed: rest, none")
    return tuple(label for label in labels if label not in target) if avoid == "rest" else ()


def name_of(target: Sequence[str]) -> str:
    """A combination in tables: `expert + casual`, or `-` if no label is asked for."""
    return " + ".join(target) or "-"


def size_name(size: int) -> str:
    """A size in tables and figures: `1 label`, `2 labels`."""
    return f"{size} label{'s' if size > 1 else ''}"
