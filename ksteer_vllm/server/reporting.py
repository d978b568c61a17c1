"""Steering reports over HTTP: `"ksteer": {"choices": [{"index": 0, …}]}` at the top of a response.

Apart from index, each choice is what `ksteer_vllm.report` returns. In a stream, the object comes in an extra
chunk with empty `choices`, the last before `[DONE]`. Responses to requests without a report are unchanged.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from ksteer_vllm.report import REPORT_ATTRIBUTE
from ksteer_vllm.server.protocol import spec_of
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["chat_reply", "chat_stream", "completion_reply", "completion_stream"]

Function = Callable[..., Any]
Reports = dict[int, dict[str, Any]]
"""Index of a choice -> its report."""

_DATA = "data: "
_DONE = f"{_DATA}[DONE]"
_OF_A_CHUNK = ("id", "object", "created", "model")


def completion_reply(original: Function) -> Function:
    """Wrap `request_output_to_completion_response(self, final_res_batch, …)`."""

    def request_output_to_completion_response(
        self: Any, final_res_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        response = original(self, final_res_batch, *args, **kwargs)
        completions = [completion for result in final_res_batch for completion in result.outputs]
        return _with_reports(response, _reports(enumerate(completions)))

    return request_output_to_completion_response


def chat_reply(original: Function) -> Function:
    """Wrap `chat_completion_full_generator(self, request, result_generator, …)`."""
    signature = inspect.signature(original)

    async def chat_completion_full_generator(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        reports: Reports = {}
        if spec_of(call.arguments["request"]) is not None:
            call.arguments["result_generator"] = _chat_results(call.arguments["result_generator"], reports)
        return _with_reports(await original(*call.args, **call.kwargs), reports)

    return chat_completion_full_generator


def completion_stream(original: Function) -> Function:
    """Wrap `completion_stream_generator(self, request, …, result_generator, …)`, which yields events."""
    return _stream(original, _completion_results)


def chat_stream(original: Function) -> Function:
    """Wrap `chat_completion_stream_generator(self, request, result_generator, …)`, which yields events."""
    return _stream(original, lambda results, reports, _: _chat_results(results, reports))


def _stream(original: Function, watched: Function) -> Function:
    signature = inspect.signature(original)

    def stream_generator(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        request = call.arguments["request"]
        if spec_of(request) is None or _speaks_another_protocol(call.arguments["self"]):
            return original(*args, **kwargs)
        reports: Reports = {}
        call.arguments["result_generator"] = watched(
            call.arguments["result_generator"], reports, request.n or 1
        )
        return _events(original(*call.args, **call.kwargs), reports)

    return stream_generator


def _speaks_another_protocol(serving: Any) -> bool:
    """/v1/messages converts chat's events to its own, and would take an extra chunk for the token count."""
    return any(kind.__name__ == "AnthropicServingMessages" for kind in type(serving).__mro__)


async def _events(events: Any, reports: Reports) -> AsyncIterator[str]:
    """The events as they come, and the reports before the last."""
    last = ""
    async with aclosing(events):
        async for event in events:
            if event.startswith(_DONE) and reports:
                yield _chunk(last, reports)
            elif event.startswith(_DATA):
                last = event
            yield event


def _chunk(last: str, reports: Reports) -> str:
    """One more chunk of the same answer as the last one."""
    fields = json.loads(last.removeprefix(_DATA))
    chunk = {name: fields[name] for name in _OF_A_CHUNK if name in fields}
    return f"{_DATA}{json.dumps({**chunk, 'choices': [], EXTRA_ARGS_KEY: _as_field(reports)})}\n\n"


async def _chat_results(results: AsyncIterator[Any], reports: Reports) -> AsyncIterator[Any]:
    """The engine's outputs as they come; reports holds those that have passed."""
    async for result in results:
        reports |= _reports((completion.index, completion) for completion in result.outputs)
        yield result


async def _completion_results(
    results: AsyncIterator[tuple[int, Any]], reports: Reports, num_choices: int
) -> AsyncIterator[tuple[int, Any]]:
    """As `_chat_results`, for (index of the prompt, output); num_choices: choices per prompt."""
    async for prompt, result in results:
        first = prompt * num_choices
        reports |= _reports((first + completion.index, completion) for completion in result.outputs)
        yield prompt, result


def _reports(completions: Iterable[tuple[int, Any]]) -> Reports:
    found = ((index, getattr(completion, REPORT_ATTRIBUTE, None)) for index, completion in completions)
    return {index: report for index, report in found if report is not None}


def _with_reports(response: Any, reports: Reports) -> Any:
    """The response with the reports added, if there are any and it is not an error."""
    if reports and hasattr(response, "choices"):
        setattr(response, EXTRA_ARGS_KEY, _as_field(reports))
    return response


def _as_field(reports: Reports) -> dict[str, Any]:
    return {"choices": [{"index": index, **report} for index, report in sorted(reports.items())]}
