"""The engine's ledger: every symbol of vLLM's engine this plugin replaces, why, and when the patch can go.

The server's are in `ksteer_vllm.server.seams`; `ksteer_vllm.plugin` applies both.

Nothing here touches a model, a worker or an engine in which steering is not enabled; there the patched
symbols behave as before, and refuse requests that carry a spec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ksteer_vllm.host import engine_core, requests
from ksteer_vllm.host.admitted import admission_record
from ksteer_vllm.host.beam_search import check_beam_search
from ksteer_vllm.host.ledger import Patch
from ksteer_vllm.host.metering import open_meter
from ksteer_vllm.host.prefix_cache import with_steering_keys
from ksteer_vllm.host.reporting import open_desk, wants_report
from ksteer_vllm.host.requests import (
    Admission,
    AdmissionError,
    asks_for_steering,
    counting_refusals,
    without_default,
)
from ksteer_vllm.host.settings import resolve_in_place

__all__ = ["ENGINE"]

Function = Callable[..., Any]


def _create_engine_config(original: Function) -> Function:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        resolve_in_place(vllm_config)
        return vllm_config

    return create_engine_config


def _input_processor_init(original: Function) -> Function:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        self.ksteer_admission = Admission.for_engine(vllm_config)

    return __init__


def _process_inputs(original: Function) -> Function:
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        resumable = bool(kwargs.get("resumable", False))
        admitted = self.ksteer_admission.check(params, resumable=resumable)
        request = original(self, request_id, prompt, params, *args, **kwargs)
        requests.compute_all_captured(request)
        if admitted is not None:
            requests.admit_into(request, admitted)
        meter = getattr(self, "ksteer_meter", None)
        if meter is not None:
            meter.noticed()
            if admitted is not None:
                meter.admitted(request, admitted)
        return request

    return process_inputs


def _async_add_request(original: Function) -> Function:
    async def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        live = self.input_processor.ksteer_admission.live
        if live is None:
            return await original(self, *args, **kwargs)
        with live.admitting():
            return await original(self, *args, **kwargs)

    return add_request


def _assign_request_id(original: Function) -> Function:
    @counting_refusals
    def assign_request_id(request: Any) -> Any:
        if asks_for_steering(request.sampling_params) and admission_record(request.sampling_params) is None:
            raise AdmissionError("this request was not admitted: pass the prompt, not a request object")
        return original(request)

    return assign_request_id


def _async_generate(original: Function) -> Function:
    def generate(self: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the spec when called, not when first iterated: with HTTP streaming the first iteration
        comes after the 200 header has been sent."""
        self.input_processor.ksteer_admission.check(
            sampling_params, num_prompt_tokens=requests.prompt_length(prompt)
        )
        return original(self, prompt, sampling_params, *args, **kwargs)

    return generate


def _async_llm_init(original: Function) -> Function:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        open_desk(self)
        open_meter(self)

    return __init__


def _llm_engine_init(original: Function) -> Function:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        open_desk(self)

    return __init__


def _output_processor_add_request(original: Function) -> Function:
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        added = original(self, request, *args, **kwargs)
        if wants_report(request):
            self.ksteer_desk.watch(self, request)
        meter = getattr(self, "ksteer_meter", None)
        if meter is not None:
            meter.watch(self, request)
        return added

    return add_request


def _output_processor_finish_request(original: Function) -> Function:
    def _finish_request(self: Any, req_state: Any) -> Any:
        meter = getattr(self, "ksteer_meter", None)
        if meter is not None:
            meter.finished(req_state.request_id)
        return original(self, req_state)

    return _finish_request


def _output_processor_abort_requests(original: Function) -> Function:
    def abort_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        aborted = original(self, *args, **kwargs)
        meter = getattr(self, "ksteer_meter", None)
        if meter is not None:
            for request_id in aborted:
                meter.finished(request_id)
        return aborted

    return abort_requests


def _llm_engine_step(original: Function) -> Function:
    def step(self: Any) -> Any:
        outputs = original(self)
        desk = self.output_processor.ksteer_desk
        if desk.finished:
            due, desk.finished = desk.finished, []
            desk.deliver(due)
        return outputs

    return step


def _streaming_input(original: Function) -> Function:
    @counting_refusals
    def _validate_streaming_input_sampling_params(params: Any) -> Any:
        if asks_for_steering(params):
            raise AdmissionError("steering is not supported in streaming-input sessions")
        return original(params)

    return _validate_streaming_input_sampling_params


def _beam_search(original: Function) -> Function:
    def beam_search(self: Any, prompts: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        check_beam_search(self.llm_engine.input_processor.ksteer_admission, params)
        with without_default():
            return original(self, prompts, params, *args, **kwargs)

    return beam_search


def _init_device(original: Function) -> Function:
    def init_device(self: Any, *args: Any, **kwargs: Any) -> Any:
        worker = self.worker
        if "ksteer" in (worker.vllm_config.additional_config or {}):
            from ksteer_vllm.host import attaching, rpc

            load_model = worker.load_model

            def load_then_attach(*load_args: Any, **load_kwargs: Any) -> Any:
                loaded = load_model(*load_args, **load_kwargs)
                attaching.attach_to_worker(worker)
                return loaded

            worker.load_model = load_then_attach
            rpc.install(worker)
        return original(self, *args, **kwargs)

    return init_device


ENGINE: tuple[Patch, ...] = (
    Patch(
        ("vllm.engine.arg_utils:EngineArgs.create_engine_config",),
        _create_engine_config,
        why="start-up checks, and the resolved configuration that enters the compile-cache key",
        delete_when="vLLM calls plugins with the finished VllmConfig",
    ),
    Patch(
        ("vllm.v1.engine.input_processor:InputProcessor.__init__",),
        _input_processor_init,
        why="the engine's admission gate lives with its input processor",
        delete_when="vLLM lets plugins validate requests",
    ),
    Patch(
        ("vllm.v1.engine.input_processor:InputProcessor.process_inputs",),
        _process_inputs,
        why="the gate every request passes (LLM, AsyncLLM, server)",
        delete_when="vLLM lets plugins validate requests",
    ),
    Patch(
        ("vllm.v1.engine.input_processor:InputProcessor.assign_request_id",),
        _assign_request_id,
        why="ready-made request objects do not pass process_inputs, and would run unsteered",
        delete_when="vLLM stops taking EngineCoreRequests from callers (deprecated)",
    ),
    Patch(
        ("vllm.v1.engine.async_llm:AsyncLLM.__init__",),
        _async_llm_init,
        why="opens the desk of steering reports, and the meter",
        delete_when="vLLM lets a worker add to a request's output",
    ),
    Patch(
        ("vllm.v1.engine.llm_engine:LLMEngine.__init__",),
        _llm_engine_init,
        why="opens the desk of steering reports",
        delete_when="vLLM lets a worker add to a request's output",
    ),
    Patch(
        ("vllm.v1.engine.output_processor:OutputProcessor.add_request",),
        _output_processor_add_request,
        why="follows the requests that are counted or want a report under the engine's own request ids",
        delete_when="vLLM lets a worker add to a request's output",
    ),
    Patch(
        ("vllm.v1.engine.output_processor:OutputProcessor._finish_request",),
        _output_processor_finish_request,
        why="counts the steered tokens of a request that has finished, for the metrics",
        delete_when="vLLM tells plugins of finished requests",
    ),
    Patch(
        ("vllm.v1.engine.output_processor:OutputProcessor.abort_requests",),
        _output_processor_abort_requests,
        why="counts the steered tokens of a request that was aborted, for the metrics",
        delete_when="as above",
    ),
    Patch(
        ("vllm.v1.engine.llm_engine:LLMEngine.step",),
        _llm_engine_step,
        why="fetches the reports of finished requests before their outputs are returned",
        delete_when="vLLM lets a worker add to a request's output",
    ),
    Patch(
        ("vllm.v1.engine.async_llm:AsyncLLM.generate",),
        _async_generate,
        why="HTTP 400 also with stream=true: checks before a generator exists",
        delete_when="vLLM runs process_inputs before it answers a streaming request",
    ),
    Patch(
        ("vllm.v1.engine.async_llm:AsyncLLM.add_request",),
        _async_add_request,
        why="a probe is unloaded only when no admission that found it is still on its way to the engine",
        delete_when="vLLM lets plugins follow a request from admission to its end",
    ),
    Patch(
        ("vllm.v1.engine.async_llm:AsyncLLM._validate_streaming_input_sampling_params",),
        _streaming_input,
        why="streaming-input sessions would change the prompt length under a spec",
        delete_when="steering supports streaming-input sessions",
    ),
    Patch(
        ("vllm.entrypoints.generate.beam_search.offline:BeamSearchOfflineMixin.beam_search",),
        _beam_search,
        why="beam search builds new sampling parameters per step and drops extra_args",
        delete_when="vLLM's beam search keeps extra_args",
    ),
    Patch(
        ("vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys",),
        with_steering_keys,
        why="prefix-cache keys of steered blocks",
        delete_when="vLLM lets a request add per-block cache keys",
    ),
    Patch(
        ("vllm.v1.core.block_pool:generate_block_hash_extra_keys",),
        with_steering_keys,
        why="the same function, imported by name (KV events)",
        delete_when="as above",
    ),
    Patch(
        ("vllm.v1.engine.core:EngineCore.collective_rpc",),
        engine_core.collective_rpc,
        why="knows which probes are resident, and unloads none that a request in the scheduler needs",
        delete_when="vLLM lets plugins follow a request from admission to its end",
    ),
    Patch(
        ("vllm.v1.engine.core:EngineCore.preprocess_add_request",),
        engine_core.preprocess_add_request,
        why="a request whose probe is not resident fails by itself; in a worker it would stop the engine",
        delete_when="as above",
    ),
    Patch(
        ("vllm.v1.worker.worker_base:WorkerWrapperBase.init_device",),
        _init_device,
        why="attaches steering after any loader has loaded the model, in enabled engines only; not in "
        "init_worker, which itself loads the plugins where a worker has a process of its own",
        delete_when="vLLM calls plugins with a loaded worker",
    ),
)
