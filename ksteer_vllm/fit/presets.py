"""Named settings of the MLP probe's fit, as others have published them.

`paper`: arXiv 2505.24535, two hidden layers of 256, cross-entropy (BCE with `--loss bce`), the prompt's last
token; where the paper is silent, as in the authors' code (withmartian/nonlinear_steering). `pip-0.1.2`: the
package k-steering 0.1.2: two hidden layers of 128, BCE, one epoch, the prompt's last token, read at the
block's input. Both: Adam at 1e-3 without weight decay on raw activations, the last weights kept. Held-out
rows are set aside here as in every fit; the package trains on all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ksteer_vllm.data.positions import PROMPT_LAST, REPLY, Window
from ksteer_vllm.errors import UsageError, choices
from ksteer_vllm.spec.compat import PIP_0_1_2

__all__ = ["PRESETS", "FitPreset", "preset_of"]


@dataclass(frozen=True)
class FitPreset:
    """A published fit. options: of the method `mlp`; window: the positions read; compat: see `FitTask`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    window: Window = REPLY
    compat: str | None = None


_AS_PUBLISHED = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "noise": 0.0,
    "standardise": False,
    "early_stopping": False,
}

PRESETS: dict[str, FitPreset] = {
    "paper": FitPreset(
        {**_AS_PUBLISHED, "width": 256, "loss": "cross-entropy", "epochs": 10, "batch_size": 32}, PROMPT_LAST
    ),
    PIP_0_1_2: FitPreset(
        {**_AS_PUBLISHED, "width": 128, "loss": "bce", "epochs": 1, "batch_size": 64}, PROMPT_LAST, PIP_0_1_2
    ),
}


def preset_of(name: str | None) -> FitPreset:
    """The preset of a name; None for None. Raises UsageError for an unknown name."""
    if name is None:
        return FitPreset()
    if name not in PRESETS:
        raise UsageError(f"preset: unknown {name[:80]!r}; known: {choices(name, PRESETS)}")
    return PRESETS[name]
