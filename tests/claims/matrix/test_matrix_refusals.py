"""Engine features that steering refuses when the engine is configured, by name; and the executors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ksteer_vllm
from ksteer_vllm import ConfigError
from ksteer_vllm.host import attaching, rpc
from ksteer_vllm.host.settings import refuse_unsupported
from tests.support.engines import OPTIONS

REFUSALS = {
    "parallel_config.enable_dbo": "dual-batch overlap (--enable-dbo)",
    "parallel_config.ubatch_size": "micro-batching (--ubatch-size)",
    "parallel_config.prefill_context_parallel_size": "prefill context parallelism",
    "parallel_config.decode_context_parallel_size": "decode context parallelism",
    "parallel_config.enable_expert_parallel": "expert parallelism (--enable-expert-parallel)",
    "compilation_config.pass_config.enable_sp": "sequence parallelism (pass_config.enable_sp)",
    "cache_config.kv_sharing_fast_prefill": "KV-sharing fast prefill (--kv-sharing-fast-prefill)",
}
"""Where the setting is -> what the refusal calls it."""


@pytest.fixture(scope="module")
def configuration(llama: Path, tiny_probes: Callable[[Path], dict[str, Path]]) -> Callable[..., Any]:
    def configure(**options: Any) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        enabled = ksteer_vllm.enable(probes=tiny_probes(llama))
        return EngineArgs(
            model=str(llama), **{**OPTIONS, **options, "additional_config": enabled}
        ).create_engine_config()

    return configure


@pytest.mark.parametrize("setting", REFUSALS)
def test_refused_by_name(setting: str, configuration: Callable[..., Any]) -> None:
    """Set on the finished configuration: vLLM's CPU platform turns most of them off before that."""
    config = configuration()
    refuse_unsupported(config)
    *path, name = setting.split(".")
    owner = config
    for part in path:
        owner = getattr(owner, part)
    object.__setattr__(owner, name, 2 if name.endswith("_size") else True)
    with pytest.raises(ConfigError) as refusal:
        refuse_unsupported(config)
    assert f"steering cannot run with {REFUSALS[setting]}" in str(refusal.value)


@pytest.mark.parametrize(
    ("model_config", "words"),
    [
        ({"runner_type": "pooling"}, "steering needs a generation engine; this one runs 'pooling'"),
        ({"is_encoder_decoder": True}, "steering cannot run with an encoder-decoder model"),
    ],
    ids=["pooling", "encoder-decoder"],
)
def test_models_without_a_decoder_of_their_own(
    model_config: dict[str, Any], words: str, configuration: Callable[..., Any]
) -> None:
    config = configuration()
    wanted = {"dtype": config.model_config.dtype, "runner_type": "generate", "is_encoder_decoder": False}
    with pytest.raises(ConfigError, match=words):
        refuse_unsupported(_with(config, model_config=SimpleNamespace(**{**wanted, **model_config})))


def _with(config: Any, **changes: Any) -> SimpleNamespace:
    names = ("parallel_config", "compilation_config", "cache_config", "kv_transfer_config", "model_config")
    return SimpleNamespace(**{name: getattr(config, name) for name in names} | changes)


def test_a_refusal_stops_the_start(
    tiny_model: Callable[..., Path], tiny_probes: Callable[[Path], dict[str, Path]]
) -> None:
    """Not only the check by itself: from the engine's arguments, as `vllm serve` does."""
    from vllm.engine.arg_utils import EngineArgs

    model = tiny_model("mixtral")
    enabled = ksteer_vllm.enable(probes=tiny_probes(model))
    for words, options in (
        ("decode context parallelism", {"decode_context_parallel_size": 2}),
        ("expert parallelism", {"enable_expert_parallel": True}),
    ):
        arguments = {**OPTIONS, "tensor_parallel_size": 2, **options, "additional_config": enabled}
        with pytest.raises(ConfigError, match=words):
            EngineArgs(model=str(model), **arguments).create_engine_config()


def test_every_executor_starts_its_workers_through_the_wrapper_that_is_hooked() -> None:
    """Ray is not installed here: its worker is read, not run. None of them replaces init_device, so a worker
    of any executor, an external launcher's too, gets its steering."""
    from vllm.v1.executor import multiproc_executor, uniproc_executor
    from vllm.v1.worker import worker_base

    assert hasattr(worker_base.WorkerWrapperBase.init_device, "__ksteer_patch__")
    assert uniproc_executor.WorkerWrapperBase is worker_base.WorkerWrapperBase
    assert multiproc_executor.WorkerWrapperBase is worker_base.WorkerWrapperBase
    external = uniproc_executor.ExecutorWithExternalLauncher
    assert issubclass(external, uniproc_executor.UniProcExecutor)
    ray = Path(multiproc_executor.__file__).with_name("ray_utils.py").read_text()
    body = ray.partition("class RayWorkerWrapper(WorkerWrapperBase):")[2].partition("\n    class ")[0]
    assert body
    assert "def init_device" not in body


def test_a_worker_of_any_kind_is_attached_after_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hook does, on a worker that knows nothing of vLLM; one without steering is left alone."""
    from vllm.v1.worker import worker_base

    done: list[str] = []
    monkeypatch.setattr(attaching, "attach_to_worker", lambda worker: done.append("attached"))
    monkeypatch.setattr(rpc, "install", lambda worker: done.append("methods"))
    for additional in ({"ksteer": {}}, {}, None):
        worker = SimpleNamespace(
            vllm_config=SimpleNamespace(additional_config=additional),
            init_device=lambda: done.append("device"),
            load_model=lambda: done.append("loaded"),
        )
        wrapper = worker_base.WorkerWrapperBase.__new__(worker_base.WorkerWrapperBase)
        wrapper.worker, wrapper.vllm_config = worker, worker.vllm_config
        with monkeypatch.context() as patch:
            patch.setattr(worker_base, "set_current_vllm_config", _nothing)
            wrapper.init_device()
        worker.load_model()
    assert done == ["methods", "device", "loaded", "attached", "device", "loaded", "device", "loaded"]


class _nothing:
    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None
