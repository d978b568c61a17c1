"""Beam search: it makes requests of its own, one per step and beam, that carry no spec."""

from __future__ import annotations

from typing import Any

from ksteer_vllm.host.requests import Admission, AdmissionError, asks_for_steering
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["check_beam_search"]


def check_beam_search(admission: Admission, params: Any) -> None:
    """Raise AdmissionError if a search asks for steering, or would get the engine's default.

    params: vLLM's BeamSearchParams. They have no extra_args; an attribute `ksteer` of False opts out.
    """
    if asks_for_steering(params):
        raise AdmissionError("steering is not supported with beam search, which would lose the spec")
    registry = admission.registry
    if (
        registry is not None
        and registry.default is not None
        and getattr(params, EXTRA_ARGS_KEY, None) is None
    ):
        raise AdmissionError(
            f"this engine steers by default (preset {registry.config.default!r}), which beam search does not "
            f'support; opt out with "{EXTRA_ARGS_KEY}": false'
        )
