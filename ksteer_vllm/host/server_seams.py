"""The ledger's part for HTTP: applied only where a server may run, since it imports the HTTP modules."""

from __future__ import annotations

from ksteer_vllm.host.ledger import Patch
from ksteer_vllm.server.gate import with_gate
from ksteer_vllm.server.protocol import refuse_beam_search, with_spec
from ksteer_vllm.server.reporting import chat_reply, chat_stream, completion_reply, completion_stream

__all__ = ["SERVER"]

_CHAT = "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest"
_COMPLETION = "vllm.entrypoints.openai.completion.protocol:CompletionRequest"
_SERVING_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_SERVING_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"

SERVER: tuple[Patch, ...] = (
    *(
        Patch(
            (f"{request}.to_sampling_params",),
            with_spec,
            why="vllm_xargs takes scalars and lists only; a nested spec is an extra field of the body",
            delete_when="vLLM passes nested extra fields on",
        )
        for request in (_CHAT, _COMPLETION)
    ),
    *(
        Patch(
            (f"{request}.to_beam_search_params",),
            refuse_beam_search,
            why="beam search drops the spec",
            delete_when="vLLM's beam search keeps extra_args",
        )
        for request in (_CHAT, _COMPLETION)
    ),
    *(
        Patch(
            (method,),
            wrap,
            why="steering reports in the response; vLLM's server drops what it does not know of an output",
            delete_when="vLLM's responses pass on fields that plugins add to an output",
        )
        for method, wrap in (
            (f"{_SERVING_COMPLETION}.request_output_to_completion_response", completion_reply),
            (f"{_SERVING_COMPLETION}.completion_stream_generator", completion_stream),
            (f"{_SERVING_CHAT}.chat_completion_full_generator", chat_reply),
            (f"{_SERVING_CHAT}.chat_completion_stream_generator", chat_stream),
        )
    ),
    Patch(
        (
            "vllm.entrypoints.launchers.app:attach_endpoint_plugins",
            "vllm.entrypoints.openai.api_server:_attach_endpoint_plugins",
        ),
        with_gate,
        why="routes that would lose a spec refuse it, also where the endpoint plugin is not loaded",
        delete_when="every route keeps extra_args",
    ),
)
