"""The workbench's vLLM engines: how one starts and stops, what a request says to it, what it recorded.

The only file of the workbench that imports vLLM, and it does so where a function needs it: reading an
experiment's folder or a probe starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Literal

from ksteer_vllm.bench.machine import cache_bytes, free_memory, gpu_share
from ksteer_vllm.bench.start_failure import reason_in, start_failure
from ksteer_vllm.config import enable
from ksteer_vllm.errors import KSteerError, UsageError
from ksteer_vllm.models import ModelIdentity, is_missing_folder, model_identity
from ksteer_vllm.spec.capture import CAPTURE_KEY
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams

__all__ = [
    "generation_params",
    "model_config",
    "model_of",
    "on_cpu",
    "reading_params",
    "running_engine",
    "start_engine",
    "stop_engine",
    "streamed",
    "take_captures",
]


_LLM_SEQUENCES: Final = 256
"""vLLM's default of `max_num_seqs` on a CPU."""
_SIZES: Final = {"kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"}
"""Options by which a caller chooses the size of the cache."""


def start_engine(
    model: str,
    options: Mapping[str, Any] | None = None,
    *,
    steering: Mapping[str, Any] | None = None,
    seeded: bool = True,
) -> Any:
    """Start a `vllm.LLM`.

    Unless the options or VLLM_CPU_KVCACHE_SPACE say how much, it takes memory that suits the machine, where
    vLLM would take nine tenths of all: on a CPU `cache_bytes` for the key-value cache, on a GPU of this
    process what is free there (`gpu_share`).

    Args:
        model: A folder, or a name on the hub.
        options: Further arguments of `vllm.LLM`.
        steering: Arguments of `ksteer_vllm.enable`; None starts an engine without steering.
        seeded: Whether requests will be sampled with seeds. vLLM's CPU sampler stops the engine when the
            prompt of a seeded request is computed in chunks, so there chunked prefill is then off unless the
            options say otherwise.

    Raises:
        ConfigError, ProbeError: Steering cannot be set up as described.
        UsageError: For a model that is not there, or that vLLM does not take; for too little memory, and for
            options that vLLM does not have.
        Exception: Whatever else vLLM raises for options it cannot start with.
    """
    from vllm import LLM

    given: dict[str, Any] = {"use_tqdm_on_load": False, **(options or {})}
    config = model_config(model, given)
    if on_cpu():
        if seeded:
            given.setdefault("enable_chunked_prefill", False)
        if _SIZES.isdisjoint(given):
            sequences = given.get("max_num_seqs") or _LLM_SEQUENCES
            given["kv_cache_memory_bytes"] = cache_bytes(config, sequences, free_memory())
    elif _SIZES.isdisjoint(given) and (memory := gpu_memory()) is not None:
        given["gpu_memory_utilization"] = gpu_share(*memory)
    if steering is not None:
        given["additional_config"] = enable(**steering)
    try:
        return LLM(model, **given)
    except KSteerError:
        raise
    except Exception as error:
        reason = start_failure(error)
        if reason is None:
            raise
        raise UsageError(f"model {model}: {reason}") from error


def stop_engine(llm: Any) -> None:
    """Stop an engine, its processes included, and release what it holds."""
    llm.llm_engine.engine_core.shutdown()


@contextmanager
def running_engine(
    model: str,
    options: Mapping[str, Any] | None = None,
    *,
    steering: Mapping[str, Any] | None = None,
    seeded: bool = True,
) -> Iterator[Any]:
    """The engine of `start_engine`, stopped when the block ends."""
    llm = start_engine(model, options, steering=steering, seeded=seeded)
    try:
        yield llm
    finally:
        stop_engine(llm)


def gpu_memory() -> tuple[int, int] | None:
    """(free, total) bytes of the GPU that an engine of this process will use.

    None where it has a process of its own: to ask would start CUDA here, and vLLM could no longer fork.
    """
    import torch
    from vllm import envs

    if envs.VLLM_ENABLE_V1_MULTIPROCESSING or not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()


def on_cpu() -> bool:
    """Whether engines of this process run on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def model_of(model: str, engine_options: Mapping[str, Any] | None = None) -> ModelIdentity:
    """What vLLM takes `model` to be, from its configuration alone.

    Args:
        model: A folder, or a name on the hub.
        engine_options: Further arguments of `vllm.LLM`.

    Raises:
        UsageError: For a model that is not there, or that vLLM does not take.
    """
    return model_identity(model_config(model, engine_options))


def model_config(model: str, engine_options: Mapping[str, Any] | None = None) -> Any:
    """vLLM's ModelConfig. Arguments and errors as of `model_of`."""
    from vllm.engine.arg_utils import EngineArgs

    if is_missing_folder(model):
        raise UsageError(f"model {model}: no such folder")
    known = {field.name for field in fields(EngineArgs)}
    options = {name: value for name, value in (engine_options or {}).items() if name in known}
    try:
        return EngineArgs(**{**options, "model": model}).create_model_config()
    except ModuleNotFoundError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"model {model}: {reason_in(error)}") from None


def generation_params(
    *,
    temperature: float,
    max_tokens: int,
    seed: int | None = None,
    spec: Mapping[str, Any] | Literal[False] | None = None,
    **fields: Any,
) -> SamplingParams:
    """Sampling parameters of a request for a reply, of which only the finished output is wanted.

    Args:
        temperature: Sampling temperature; 0 is greedy and takes no seed.
        max_tokens: Most tokens of the reply.
        seed: Seed of the sampling; None draws one.
        spec: How to steer it, as JSON; None: as the engine does by default, False: not at all.
        fields: Further fields of `vllm.SamplingParams`.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed if temperature > 0 else None,
        extra_args=None if spec is None else {EXTRA_ARGS_KEY: spec and dict(spec)},
        output_kind=RequestOutputKind.FINAL_ONLY,
        **fields,
    )


def streamed(parameters: SamplingParams) -> SamplingParams:
    """The same request, told as it goes: every output holds only what is new."""
    from vllm.sampling_params import RequestOutputKind

    parameters.output_kind = RequestOutputKind.DELTA
    return parameters


def reading_params(
    *,
    spec: Mapping[str, Any] | None = None,
    capture: Mapping[str, Any] | None = None,
    **fields: Any,
) -> SamplingParams:
    """Sampling parameters of a request that only reads its prompt: one greedy token, no text.

    Args:
        spec: How to steer the prompt, as JSON; None leaves it unsteered.
        capture: The positions to record, see `ksteer_vllm.spec.capture.capture_window`.
        fields: Further fields of `vllm.SamplingParams`, or others instead of these.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    extra: dict[str, Any] = {}
    if spec is not None:
        extra[EXTRA_ARGS_KEY] = dict(spec)
    if capture is not None:
        extra[CAPTURE_KEY] = dict(capture)
    given: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, **fields}
    return SamplingParams(extra_args=extra or None, output_kind=RequestOutputKind.FINAL_ONLY, **given)


def take_captures(llm: Any, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """What finished requests had recorded; the engine keeps it no longer.

    Args:
        llm: An engine started with `capture`.
        names: Names of the windows to take; None takes everything.

    Returns:
        "LAYER/NAME" -> residual stream [positions, d] float32. Tensor-parallel workers record the same,
        pipeline-parallel workers different layers; each is here once.
    """
    from safetensors.torch import load

    found: dict[str, Tensor] = {}
    for worker in llm.collective_rpc("ksteer_take_captures", args=(names,)):
        found |= load(worker) if worker else {}
    return found
