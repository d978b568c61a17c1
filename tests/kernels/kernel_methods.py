"""Every method's edits, by name."""

from __future__ import annotations

from collections.abc import Callable

from kernel_affine_edits import ace_edits, add_edits, gated_edits, loreft_edits, lorest_edits, sae_edits
from kernel_edits import Edit, Maker
from kernel_metric_edits import METRICS, metric_edits
from kernel_probe_edits import loss_edits, plain_edits, reflect_edits


def bounded_edits(maker: Maker) -> list[Edit]:
    """Caps that bind and caps that do not, norm preservation, and both, on every kind of program."""
    steps, reflects, adds, aces = plain_edits(maker), reflect_edits(maker), add_edits(maker), ace_edits(maker)
    return [
        steps[0].bounded(cap=0.05),
        steps[1].bounded(preserve=True),
        reflects[1].bounded(cap=0.1, preserve=True),
        adds[0].bounded(cap=0.02),
        adds[1].bounded(preserve=True),
        aces[0].bounded(cap=0.2, preserve=True),
        aces[1].bounded(cap=100.0),
    ]


METHODS: dict[str, Callable[[Maker], list[Edit]]] = {
    "plain": plain_edits,
    "losses": loss_edits,
    "reflect": reflect_edits,
    "add": add_edits,
    "ace": ace_edits,
    "loreft": loreft_edits,
    "lorest": lorest_edits,
    "sae": sae_edits,
    "gated": gated_edits,
    "bounded": bounded_edits,
    **{kind: metric_edits(kind) for kind in METRICS},
}
