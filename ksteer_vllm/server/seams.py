"""The server's ledger: LAUNCH, applied in every process, and HTTP, applied once a server may run.

HTTP imports vLLM's HTTP modules, which an offline engine has no need of; LAUNCH applies it in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ksteer_vllm.host.ledger import Patch, apply
from ksteer_vllm.host.settings import refuse_grpc_server, refuse_rust_front_end
from ksteer_vllm.server.beam_search import refuse_default
from ksteer_vllm.server.endpoints.plugin import with_endpoints
from ksteer_vllm.server.flags import add_flags, merge_flags
from ksteer_vllm.server.preset_models import list_presets, resolve_preset_model
from ksteer_vllm.server.protocol import refuse_beam_search, with_spec
from ksteer_vllm.server.reporting import chat_reply, chat_stream, completion_reply, completion_stream
from ksteer_vllm.server.responses import checked_turns, response_with_reports
from ksteer_vllm.server.run_batch import refuse_lines_that_lose_specs

__all__ = ["HTTP", "LAUNCH"]

Function = Callable[..., Any]

_CHAT = "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest"
_COMPLETION = "vllm.entrypoints.openai.completion.protocol:CompletionRequest"
_RESPONSES = "vllm.entrypoints.openai.responses.protocol:ResponsesRequest"
_SERVING_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_SERVING_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"
_SERVING_RESPONSES = "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses"

HTTP: tuple[Patch, ...] = (
    *(
        Patch(
            (f"{request}.to_sampling_params",),
            with_spec,
            why="vllm_xargs takes scalars and lists only; a nested spec is an extra field of the body",
            delete_when="vLLM passes nested extra fields on",
        )
        for request in (_CHAT, _COMPLETION, _RESPONSES)
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
            (f"{_SERVING_RESPONSES}.responses_full_generator", response_with_reports),
        )
    ),
    Patch(
        (f"{_SERVING_RESPONSES}._generate_with_builtin_tools",),
        checked_turns,
        why="HTTP 400 also with stream=true and in the background: the engine sees the spec too late; and "
        "keeps the reports of the turns",
        delete_when="vLLM runs process_inputs before it answers a streaming request",
    ),
    Patch(
        (
            "vllm.entrypoints.launchers.run_batch:handle_endpoint_request",
            "vllm.entrypoints.openai.run_batch:handle_endpoint_request",
        ),
        refuse_lines_that_lose_specs,
        why="vllm run-batch calls the handlers itself, past the HTTP application",
        delete_when="every route keeps extra_args",
    ),
    Patch(
        ("vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin.beam_search",),
        refuse_default,
        why="its requests say nothing of steering, one per step and beam: the engine's default would be "
        "applied to each as if it began there",
        delete_when="vLLM's beam search keeps extra_args",
    ),
    Patch(
        ("vllm.entrypoints.serve.engine.serving:BaseServing._check_model",),
        resolve_preset_model,
        why="a preset is called by a model name, and is the default of requests that say nothing",
        delete_when="vLLM lets a plugin resolve model names",
    ),
    Patch(
        ("vllm.entrypoints.openai.models.serving:OpenAIServingModels.show_available_models",),
        list_presets,
        why="/v1/models lists the presets",
        delete_when="vLLM lets a plugin list models",
    ),
    Patch(
        (
            "vllm.entrypoints.launchers.app:attach_endpoint_plugins",
            "vllm.entrypoints.openai.api_server:_attach_endpoint_plugins",
        ),
        with_endpoints,
        why="routes that would lose a spec refuse it, also where no endpoint plugin is loaded; and ours is "
        "added, which VLLM_PLUGINS may not turn off",
        delete_when="every route keeps extra_args",
    ),
)


def _add_cli_args(original: Function) -> Function:
    def add_cli_args(parser: Any) -> Any:
        return add_flags(original(parser))

    return add_cli_args


def _from_cli_args(original: Function) -> Function:
    def from_cli_args(cls: Any, args: Any) -> Any:
        apply(HTTP)
        engine_args = original(cls, args)
        engine_args.additional_config = merge_flags(args, engine_args.additional_config)
        refuse_rust_front_end(engine_args.additional_config)
        refuse_grpc_server(engine_args.additional_config, args)
        return engine_args

    return from_cli_args


def _async_llm_init(original: Function) -> Function:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        apply(HTTP)
        original(self, *args, **kwargs)

    return __init__


LAUNCH: tuple[Patch, ...] = (
    Patch(
        ("vllm.engine.arg_utils:EngineArgs.add_cli_args",),
        _add_cli_args,
        why="adds --plugin and --ksteer-*; vLLM has no hook for a plugin's flags",
        delete_when="vLLM lets a general plugin register command-line arguments",
    ),
    Patch(
        ("vllm.engine.arg_utils:EngineArgs.from_cli_args",),
        _from_cli_args,
        why="moves the flags into additional_config, whatever their order beside --additional-config; and "
        "applies HTTP where a server has no engine (vllm launch render)",
        delete_when="as add_cli_args",
    ),
    Patch(
        ("vllm.v1.engine.async_llm:AsyncLLM.__init__",),
        _async_llm_init,
        why="applies HTTP where an engine may serve",
        delete_when="HTTP is empty",
    ),
)
