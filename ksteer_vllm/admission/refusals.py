"""Counting refused requests, by a reason from a bounded set."""

from __future__ import annotations

from ksteer_vllm.spec.presets import PRESET_KEY
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY, SteeringSpec
from ksteer_vllm.telemetry import events, metrics
from ksteer_vllm.telemetry.metrics import REASONS

__all__ = ["count_refusal", "reason_of"]

_SPELT_OTHERWISE = {"num_steps": "steps"}
_FIELDS = {*SteeringSpec.model_fields, PRESET_KEY}
_BEFORE_A_FIELD = ("extra_args", "vllm_xargs", EXTRA_ARGS_KEY)


def reason_of(parameter: str) -> str:
    """The reason for a refusal that names this parameter: the first field of its path or, in a stack, of the
    edit's path.

    "ksteer.stack.0.target.hot" -> "target"; anything that is not a field of a spec is "other".
    """
    path = parameter.split(".")
    while path and path[0] in _BEFORE_A_FIELD:
        del path[0]
    if path[:1] == ["stack"] and len(path) > 2:
        del path[:2]
    field = path[0] if path else ""
    reason = _SPELT_OTHERWISE.get(field, field)
    return reason if field in _FIELDS and reason in REASONS else "other"


def count_refusal(parameter: str, reason: str = "") -> None:
    """Count a refused request in the metrics and log it.

    Args:
        parameter: The path of the offending field.
        reason: One of `REASONS`, where the parameter does not determine it.
    """
    reason = reason or reason_of(parameter)
    metrics.refused(reason)
    if metrics.current() is not None:
        events.emit("refused", reason=reason, parameter=parameter)
