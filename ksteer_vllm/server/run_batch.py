"""`vllm run-batch`: its lines never pass the gate of the HTTP application, so each line that would lose a
spec is refused here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ksteer_vllm.admission.refusals import count_refusal
from ksteer_vllm.host.requests import AdmissionError
from ksteer_vllm.server.bodies import carries_spec
from ksteer_vllm.server.gate import STEERED_ROUTES, refusal
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["refuse_lines_that_lose_specs"]


def refuse_lines_that_lose_specs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `handle_endpoint_request(request, tracker, url_matcher, handler_getter, wrapper_fn=None)`.

    A refused line gets a handler that raises, which vLLM writes into the output file as status 400.
    """
    signature = inspect.signature(original)

    def handle_endpoint_request(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        request = call.arguments["request"]
        if request.url not in STEERED_ROUTES and carries_spec(_fields(request.body)):
            call.arguments |= {"handler_getter": lambda: _refusing(request.url), "wrapper_fn": None}
        return original(*call.args, **call.kwargs)

    return handle_endpoint_request


def _fields(body: Any) -> dict[str, Any]:
    return {**body.__dict__, **(body.model_extra or {})}


def _refusing(url: str) -> Callable[..., Any]:
    async def refuse(*_: Any) -> Any:
        count_refusal(EXTRA_ARGS_KEY, "route")
        raise AdmissionError(refusal(url))

    return refuse
