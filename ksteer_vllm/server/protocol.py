"""How a spec enters an OpenAI request: a `ksteer` object in the body, or a JSON string in `vllm_xargs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ksteer_vllm.host.requests import AdmissionError, counting_refusals
from ksteer_vllm.server.bodies import CARRIERS, carries_spec
from ksteer_vllm.spec.presets import is_opt_out
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["refuse_beam_search", "with_spec"]


def spec_of(request: Any) -> Any:
    """What a completion, chat or responses request says about steering, in either spelling, or None."""
    undeclared = request.model_extra or {}
    in_body = undeclared.get(EXTRA_ARGS_KEY)
    in_xargs = (getattr(request, "vllm_xargs", None) or {}).get(EXTRA_ARGS_KEY)
    if in_body is not None and in_xargs is not None:
        raise AdmissionError(f"{EXTRA_ARGS_KEY}: given twice, in the body and in vllm_xargs")
    for name in CARRIERS:
        if carries_spec(undeclared.get(name), opt_outs=True):
            raise AdmissionError(
                f"{EXTRA_ARGS_KEY}: this route does not read {name!r} and would lose the spec; expected at "
                "the top of the body, or as a JSON string in vllm_xargs"
            )
    return in_body if in_body is not None else in_xargs


def with_spec(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `to_sampling_params`: the spec goes into extra_args, in a dict of its own."""

    @counting_refusals
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        spec = spec_of(self)
        if spec is not None:
            params.extra_args = {**(params.extra_args or {}), EXTRA_ARGS_KEY: spec}
        return params

    return to_sampling_params


def refuse_beam_search(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `to_beam_search_params`: beam search would drop the spec. An opt-out is passed on."""

    @counting_refusals
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        spec = spec_of(self)
        if spec is not None and not is_opt_out(spec):
            raise AdmissionError(
                f"{EXTRA_ARGS_KEY}: steering is not supported with beam search, which would lose the spec; "
                f'opt out with "{EXTRA_ARGS_KEY}": false'
            )
        params = original(self, *args, **kwargs)
        if spec is not None:
            setattr(params, EXTRA_ARGS_KEY, False)
        return params

    return to_beam_search_params
