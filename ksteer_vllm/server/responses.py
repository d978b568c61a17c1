"""`/v1/responses`: the spec is checked before the stream starts, and reports come with the response.

A response comes from one turn of the model, or from several if vLLM runs built-in tools between them. Its
`"ksteer"` is `{"choices": [{"index": 0, …}]}`, one entry per turn; in a stream it is in the response of the
last event, `response.completed`. Each turn is steered as a request of its own: prompt windows refer to that
turn's prompt, which includes the earlier turns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ksteer_vllm.host.requests import prompt_length
from ksteer_vllm.report import REPORT_ATTRIBUTE
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["checked_turns", "response_with_reports"]

Function = Callable[..., Any]

_REPORTS = "ksteer_reports"
"""Attribute of a conversation context: the reports of its turns so far."""


def checked_turns(original: Function) -> Function:
    """Wrap `_generate_with_builtin_tools(self, …, engine_input, sampling_params, context, …)`.

    The original is an async generator: the engine would see the first turn's spec only when it is first
    iterated, which with streaming, or in the background, is after the answer has begun.
    """
    signature = inspect.signature(original)

    def _generate_with_builtin_tools(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs).arguments
        call["self"].engine_client.input_processor.ksteer_admission.check(
            call["sampling_params"], num_prompt_tokens=prompt_length(call["engine_input"])
        )
        _collect_reports(call["context"])
        return original(*args, **kwargs)

    return _generate_with_builtin_tools


def _collect_reports(context: Any) -> None:
    """Have the context keep the report of each turn whose outputs it is given."""
    append = context.append_output
    reports: list[dict[str, Any]] = []

    def append_output(output: Any) -> Any:
        found = (getattr(completion, REPORT_ATTRIBUTE, None) for completion in output.outputs)
        reports.extend(report for report in found if report is not None)
        return append(output)

    context.append_output = append_output
    setattr(context, _REPORTS, reports)


def response_with_reports(original: Function) -> Function:
    """Wrap `responses_full_generator(self, …, context, …)`, whose response a stream ends with too."""
    signature = inspect.signature(original)

    async def responses_full_generator(*args: Any, **kwargs: Any) -> Any:
        response = await original(*args, **kwargs)
        reports = getattr(signature.bind(*args, **kwargs).arguments["context"], _REPORTS, None)
        if reports and hasattr(response, "output"):
            choices = [{"index": turn, **report} for turn, report in enumerate(reports)]
            setattr(response, EXTRA_ARGS_KEY, {"choices": choices})
        return response

    return responses_full_generator
