"""`compat: "pip-0.1.2"` in a spec: what k-steering 0.1.2 does to a token, as an ordinary edit.

The package hooks the output of each steered block. With S positions in a forward pass it takes
L = mean_avoid f - mean_target f of the logits f averaged over those S positions, so a token moves by

    x <- x - (alpha / S) grad_x (mean_avoid f(x) - mean_target f(x))

where S is the (padded) length of the prompt while the prompt is read, the last prompt token included, and 1
for every token decoded after it. Hence one edit over two windows, prompt [0, P) with alpha / P and generation
from index 1 with alpha.
"""

from __future__ import annotations

from typing import Any

from ksteer_vllm.errors import SpecError
from ksteer_vllm.spec.compat import Compat
from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.where import NO_END, Where

__all__ = ["DEFAULT_ALPHA", "DEFAULT_STEPS", "WHERE", "as_ordinary_edit", "divisor_and_windows"]

WHERE = Where(prompt=(0, None), generation=(1, None))
"""Every position; prompt index P - 1 belongs to the prompt's forward pass, so generation starts at 1."""

DEFAULT_ALPHA = 1.0
DEFAULT_STEPS = 1

_UNKNOWN = ("values", "loss", "until", "unit", "metric", "cap", "preserve_norm", "fade", "condition")
"""Fields that have no counterpart in the package."""


def as_ordinary_edit(edit: Edit) -> Edit:
    """The edit with the package's defaults filled in, its strength included: a probe's default_alpha was
    calibrated for another edit. Raises SpecError for what the package cannot do."""
    assert edit.compat is not None
    version = edit.compat.version
    for name in _UNKNOWN:
        if (value := getattr(edit, name)) != Edit.model_fields[name].default:
            raise SpecError(name, f"{version} has no counterpart: leave out {name} or compat", value)
    if edit.method not in (None, "gradient"):
        raise SpecError("method", f"{version} takes gradient steps, got {edit.method!r}", edit.method)
    if edit.where not in (None, WHERE):
        raise SpecError("where", f"{version} steers every position: leave out where or compat", edit.where)
    for side in ("target", "avoid"):
        if len(set(getattr(edit, side).values())) > 1:
            raise SpecError(side, f"{version} weighs the labels of a side equally: give a list", None)
    changes: dict[str, Any] = {"method": "gradient", "where": WHERE}
    if "num_steps" not in edit.model_fields_set:
        changes["num_steps"] = DEFAULT_STEPS
    if edit.alpha is None:
        changes["alpha"] = DEFAULT_ALPHA
    return edit.model_copy(update=changes)


def divisor_and_windows(compat: Compat, num_prompt_tokens: int) -> tuple[int, tuple[int, int, int, int]]:
    """(S of the prompt's forward pass, absolute windows) of a request. Raises SpecError."""
    padded = compat.padded_length
    if padded is not None and padded < num_prompt_tokens:
        raise SpecError(
            "compat.padded_length", f"the prompt has {num_prompt_tokens} tokens, got {padded}", padded
        )
    windows = (0, num_prompt_tokens, num_prompt_tokens, NO_END)
    return padded or num_prompt_tokens, windows
