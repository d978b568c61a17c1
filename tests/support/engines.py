"""In-process vLLM engines for tests: small, eager, float32 and quick to start.

Call `prepare_environment` before vllm is imported for the first time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import ksteer_vllm

BLOCK_SIZE = 32
"""The smallest block of vLLM's CPU attention."""

OPTIONS: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 256,
    "block_size": BLOCK_SIZE,
    "max_num_seqs": 16,
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": 8 << 20,
    "disable_log_stats": False,
    "seed": 0,
}

GIB_OF_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""For engines that are given no size, which would take a share of what the machine has free just now. It goes
before a size."""

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "logprobs": 5, "ignore_eos": True}


def prepare_environment() -> None:
    """Engines in this process, one thread, quiet logs; for the V2 runner, what lets it start on a CPU.

    One thread: tiny models gain nothing from more, and threads that wait for each other on a busy machine
    spin.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if wants_v2_runner():
        os.environ["TRITON_INTERPRET"] = "1"
        from triton.backends import backends

        backends["cpu"] = SimpleNamespace(  # type: ignore[assignment]
            driver=SimpleNamespace(is_active=lambda: True), compiler=None
        )


def wants_v2_runner() -> bool:
    """Whether this process was asked to test on vLLM's V2 model runner."""
    return os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"


_started: list[Any] = []
"""Engines of one process share vLLM's process groups, which the first to be collected would take down."""


def start_engine(
    model: Path, probes: Mapping[str, Path] | None = None, *, steering: Any = None, **options: Any
) -> Any:
    """An `LLM`. Steering is enabled if probes are given; `steering`: further keys of `ksteer_vllm.enable`."""
    from vllm import LLM

    arguments = {**OPTIONS, **options}
    if probes is not None:
        arguments["additional_config"] = ksteer_vllm.enable(probes=probes, **(steering or {}))
    _started.append(LLM(str(model), **arguments))
    return _started[-1]


@contextmanager
def async_scheduling() -> Iterator[None]:
    """Engines started inside schedule a step ahead, which vLLM's CPU platform turns off by itself."""
    from vllm.platforms.cpu import CpuPlatform

    original = vars(CpuPlatform)["check_and_update_config"]

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        original.__func__(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    try:
        yield
    finally:
        CpuPlatform.check_and_update_config = original


def sampling(spec: Any = None, *, other: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    """Greedy SamplingParams with log-probabilities; spec: anything `extra_args["ksteer"]` may hold."""
    from vllm import SamplingParams

    extra = {**(other or {}), **({} if spec is None else {"ksteer": spec})}
    return SamplingParams(**{**GREEDY, **changes}, extra_args=extra or None)


def token_prompt(tokens: Sequence[int], **more: Any) -> dict[str, Any]:
    return {"prompt_token_ids": list(tokens), **more}


def generate(llm: Any, prompts: Sequence[Sequence[int]], specs: Sequence[Any], **changes: Any) -> list[Any]:
    """Greedy outputs of one batch, one spec (or None) per prompt."""
    params = [sampling(spec, **changes) for spec in specs]
    return llm.generate([token_prompt(p) for p in prompts], params, use_tqdm=False)


def generate_one(llm: Any, prompt: Sequence[int], spec: Any = None, **changes: Any) -> Any:
    """The greedy output of a request that runs alone."""
    return generate(llm, [prompt], [spec], **changes)[0]


def worker(llm: Any) -> Any:
    """The worker of an engine that runs in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def counter(llm: Any, name: str) -> float:
    """A counter of the engine's metrics since the process began, such as `vllm:num_preemptions`."""
    label = str(llm.llm_engine.vllm_config.model_config.served_model_name)
    return sum(m.value for m in llm.get_metrics() if m.name == name and m.labels["model_name"] == label)
