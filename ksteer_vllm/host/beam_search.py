"""Beam search: it makes requests of its own, one per step and beam, that say nothing of steering."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

if TYPE_CHECKING:
    from ksteer_vllm.host.requests import Admission

__all__ = ["check_beam_search", "default_is_off", "without_default"]

_DEFAULT_IS_OFF: ContextVar[bool] = ContextVar("ksteer_default_is_off", default=False)


def default_is_off() -> bool:
    """Whether requests that say nothing of steering are made for a search that opted out."""
    return _DEFAULT_IS_OFF.get()


@contextmanager
def without_default() -> Iterator[None]:
    """Requests made inside, and in tasks created inside, are not given the engine's default."""
    token = _DEFAULT_IS_OFF.set(True)
    try:
        yield
    finally:
        _DEFAULT_IS_OFF.reset(token)


def check_beam_search(admission: Admission, params: Any) -> None:
    """Raise AdmissionError if a search asks for steering, or would get the engine's default.

    params: vLLM's BeamSearchParams. They have no extra_args; an attribute `ksteer` of False opts out.
    """
    from ksteer_vllm.host.requests import AdmissionError, asks_for_steering

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
