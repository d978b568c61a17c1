"""Beam search over HTTP on an engine that steers by default: refused unless the request opts out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from ksteer_vllm.host.beam_search import check_beam_search
from ksteer_vllm.host.requests import without_default

__all__ = ["refuse_default"]


def refuse_default(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BeamSearchOnlineMixin.beam_search(self, prompt, request_id, params, …)`, an async generator.

    Checks when called, not when first iterated.
    """

    def beam_search(self: Any, prompt: Any, request_id: str, params: Any, *args: Any, **kwargs: Any) -> Any:
        check_beam_search(self.engine_client.input_processor.ksteer_admission, params)
        return _without_default(original(self, prompt, request_id, params, *args, **kwargs))

    return beam_search


async def _without_default(results: AsyncIterator[Any]) -> AsyncIterator[Any]:
    while True:
        with without_default():  # not across a yield: the caller's own requests are no part of the search
            try:
                result = await anext(results)
            except StopAsyncIteration:
                return
        yield result
