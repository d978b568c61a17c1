"""The workbench's vLLM engines: how one starts and stops, what a request says to it, what it recorded.

The only file of the workbench that imports vLLM, and it does so where a function needs it: reading an
experiment's folder or a probe starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from ksteer_vllm.config import enable
from ksteer_vllm.models import ModelIdentity, model_identity
from ksteer_vllm.spec.capture import CAPTURE_KEY
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams

__all__ = [
    "generation_params",
    "model_of",
    "on_cpu",
    "reading_params",
    "running_engine",
    "start_engine",
    "stop_engine",
    "take_captures",
]


def start_engine(
    model: str,
    options: Mapping[str, Any] | None = None,
    *,
    steering: Mapping[str, Any] | None = None,
    seeded: bool = True,
) -> Any:
    """Start a `vllm.LLM`.

    Args:
        model: A folder, or a name on the hub.
        options: Further arguments of `vllm.LLM`.
        steering: Arguments of `ksteer_vllm.enable`; None starts an engine without steering.
        seeded: Whether requests will be sampled with seeds. vLLM's CPU sampler stops the engine when the
            prompt of a seeded request is computed in chunks, so there chunked prefill is then off unless the
            options say otherwise.

    Raises:
        ConfigError, ProbeError: Steering cannot be set up as described.
        Exception: Whatever vLLM raises for a model or options it cannot start with.
    """
    from vllm import LLM

    given: dict[str, Any] = {"use_tqdm_on_load": False, **(options or {})}
    if seeded and on_cpu():
        given.setdefault("enable_chunked_prefill", False)
    if steering is not None:
        given["additional_config"] = enable(**steering)
    return LLM(model, **given)


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


def on_cpu() -> bool:
    """Whether engines of this process run on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def model_of(model: str, engine_options: Mapping[str, Any] | None = None) -> ModelIdentity:
    """What vLLM takes `model` to be, from its configuration alone.

    Args:
        model: A folder, or a name on the hub.
        engine_options: Further arguments of `vllm.LLM`.
    """
    from vllm.engine.arg_utils import EngineArgs

    return model_identity(EngineArgs(model=model, **(engine_options or {})).create_model_config())


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
