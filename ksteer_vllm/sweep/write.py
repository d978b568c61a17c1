"""Calibrated strengths into the artifacts, so that requests without a strength use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ksteer_vllm.artifact import Artifact
from ksteer_vllm.edit import Edit
from ksteer_vllm.study.variants import Variant
from ksteer_vllm.sweep.calibration import Calibration, Rule
from ksteer_vllm.sweep.subject import Subject

__all__ = ["write_defaults"]


def write_defaults(
    subject: Subject, calibration: Calibration, *, rule: Rule = "best"
) -> dict[str, dict[str, Any]]:
    """Give every artifact the strengths of its variants for the smallest combinations, and, where it has
    tensors for several layers, the chosen layer. Returns what was written, by artifact.

    Only variants that are a request with the method's default settings count, or amount to one.
    """
    size = min(cell.size for cell in calibration.cells)
    written: dict[str, dict[str, Any]] = {}
    for variant in calibration.variants:
        alpha = calibration.alpha(variant.name, size, rule=rule)
        default = None if alpha is None else _as_default(variant, alpha)
        if default is not None:
            found = written.setdefault(variant.artifact, {"default_alpha": {}})
            found["default_alpha"][variant.method] = default
            if (layer := calibration.layer(variant.name)) is not None:
                found["default_layers"] = (layer,)
    for name, changes in written.items():
        artifact = Artifact.load(subject.paths[name])
        alphas = {**artifact.metadata.default_alpha, **changes["default_alpha"]}
        artifact.with_metadata(**{**changes, "default_alpha": alphas}).save(subject.paths[name])
    return written


def _as_default(variant: Variant, alpha: float) -> float | None:
    """The strength a request without settings needs to do the same; None if it cannot.

    n steps of a linear probe's gradient are n times one step.
    """
    settings: Mapping[str, Any] = variant.settings
    if not settings:
        return alpha
    if variant.family == "linear" and set(settings) == {"num_steps"}:
        return alpha * float(settings["num_steps"]) / float(Edit.model_fields["num_steps"].default)
    return None
