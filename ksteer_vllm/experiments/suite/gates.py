"""Before anything is fitted: whether the replies show what their labels say."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.errors import listing
from ksteer_vllm.fit.visibility import LEAST, Visibility, invisible

__all__ = ["refusal", "told"]


def told(found: Sequence[Visibility]) -> str:
    """Which labels the replies do not show, with figures; there must be some."""
    hidden = invisible(found)
    figures = listing((f"{one.label} {one.accuracy}" for one in hidden), 12)
    return (
        f"the replies do not show {'their labels' if len(hidden) == len(found) else 'some of their labels'}: "
        "a bag of words, tested on other questions, tells them from the rest with balanced accuracy "
        f"{figures} (chance is 0.50; at least {LEAST:.2f} and an interval above chance are needed)"
    )


def refusal(found: Sequence[Visibility]) -> str:
    """`told`, and what can be done about it where the model was asked for the labels."""
    kept = [one.label for one in found if one.visible]
    fewer = f"fit the others alone (--labels {','.join(kept)}), " if len(kept) > 1 else ""
    return (
        f"{told(found)}; ask in other words, {fewer}give replies that show the labels, or fit anyway "
        "(--allow-invisible-labels)"
    )
