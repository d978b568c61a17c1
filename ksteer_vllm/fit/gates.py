"""Before anything is fitted: whether the replies show what their labels say. One gate for all commands."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.data.split import check_labels, targets_of
from ksteer_vllm.errors import DataError, listing
from ksteer_vllm.fit.visibility import LEAST, Visibility, invisible, visibility

__all__ = ["check_replies", "refusal", "told"]


def check_replies(
    rows: Sequence[LabelledRow],
    given: Sequence[LabelledRow],
    labels: Sequence[str],
    *,
    allowed: bool,
    console: Console,
) -> list[Visibility]:
    """What a bag of words finds of the labels in the replies; a warning if it misses some.

    Args:
        rows: With their replies.
        given: The same as they were given; those without a reply were asked for their labels.
        labels: The labels that will be fitted.
        allowed: Whether replies that were asked for may fail to show their labels.
        console: Where the warning is shown.

    Returns:
        A finding per label, in their order.

    Raises:
        DataError: For a label with too few rows, and if replies that were asked for do not show their
            labels, unless that is allowed.
    """
    check_labels(targets_of(rows, labels), labels, rows=rows)
    found = visibility(rows, labels)
    if invisible(found):
        if not allowed and any(row.reply is None for row in given):
            raise DataError(refusal(found))
        console.print(f"warning: {told(found)}", style="yellow", highlight=False)
    return found


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
