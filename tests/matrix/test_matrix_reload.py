"""Weights replaced in a running engine (RL loops), and sleep mode.

vLLM's CPU build refuses sleep mode, so what sleep does to device memory is tested on the worker's load with
an allocator that only writes down when it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ksteer_vllm
from ksteer_vllm.batch import SteeringState
from tests.matrix.cases import SPECS, prompts
from tests.support.compare import assert_differ
from tests.support.engines import OPTIONS, generate, start_engine, worker
from tests.support.oracle import Oracle


def test_steering_survives_new_weights(
    llama: Path,
    tiny_model: Callable[..., Path],
    tiny_probes: Callable[[Path], dict[str, Path]],
    oracle_of: Callable[[Path], Oracle],
) -> None:
    """As RL loops do: dummy weights at the start, then weights from disk, from another folder, from memory.

    Steered output is that of the new weights; layers and probes stay where they are.
    """
    other = tiny_model("llama", 5)
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, load_format="dummy")
    state = worker(llm).ksteer_state
    tables = {
        name: t.data_ptr() for name, t in vars(state.pool.tables).items() if isinstance(t, torch.Tensor)
    }
    asked = [prompts(1)[0]] * len(SPECS)
    dummy = generate(llm, asked, list(SPECS.values()))
    llm.collective_rpc("update_config", args=({"load_config": {"load_format": "auto"}},))
    before, after = oracle_of(llama), oracle_of(other)
    for title, source, oracle in (
        ("its own folder", {}, before),
        ("another folder", {"weights_path": str(other)}, after),
        ("back", {"weights_path": str(llama)}, before),
        ("memory", {"weights_iterator": list(load_file(other / "model.safetensors").items())}, after),
    ):
        llm.collective_rpc("reload_weights", kwargs=source)
        assert llm.reset_prefix_cache()
        outputs = generate(llm, asked, list(SPECS.values()))
        oracle.check(SPECS, asked, outputs, title)
        assert_differ(outputs[1], dummy[1], "the weights did not change:")
    assert worker(llm).ksteer_state is state
    assert tables == {name: getattr(state.pool.tables, name).data_ptr() for name in tables}
    layers = worker(llm).model_runner.get_model().model.layers
    assert all(type(layer).__name__ == "SteeredLlamaDecoderLayer" for layer in layers)


def test_the_cpu_build_refuses_sleep_mode_itself(llama: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = {**OPTIONS, "enable_sleep_mode": True, "additional_config": ksteer_vllm.enable(layers=[1])}
    with pytest.raises(ValueError, match="Sleep mode is not supported on current platform"):
        EngineArgs(model=str(llama), **arguments).create_engine_config()


def test_steering_memory_is_outside_what_sleep_discards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 2 drops what was allocated in the pools named `weights` and `kv_cache`, and restores only the
    model's buffers: ours is allocated when the worker's load_model has closed its pool, and is no buffer."""
    from vllm.v1.worker.gpu_worker import Worker
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from ksteer_vllm.host import loading

    open_pools: list[str] = []
    seen: list[tuple[str, list[str]]] = []

    class TinyWorker(Worker):
        def __init__(self) -> None:
            self.vllm_config = SimpleNamespace(additional_config={"ksteer": {}}, weight_transfer_config=None)
            self.model_runner = SimpleNamespace(load_model=self._load, get_model=nn.Module)

        def init_device(self) -> None:
            return None

        def _load(self, *, load_dummy_weights: bool) -> None:
            seen.append(("weights loaded", list(open_pools)))

        @contextmanager
        def _maybe_get_memory_pool_context(self, tag: str) -> Iterator[None]:
            open_pools.append(tag)
            yield
            open_pools.remove(tag)

    def attach(worker: Any) -> None:
        seen.append(("steering attached", list(open_pools)))

    monkeypatch.setattr(loading, "attach_to_worker", attach)
    monkeypatch.setattr("vllm.v1.worker.gpu_worker.set_current_vllm_config", lambda config: pool_free())
    wrapper = WorkerWrapperBase.__new__(WorkerWrapperBase)
    wrapper.worker = TinyWorker()
    wrapper.vllm_config = wrapper.worker.vllm_config
    monkeypatch.setattr("vllm.v1.worker.worker_base.set_current_vllm_config", lambda config: pool_free())
    wrapper.init_device()
    wrapper.worker.load_model()
    assert seen == [("weights loaded", ["weights"]), ("steering attached", [])]


@contextmanager
def pool_free() -> Iterator[None]:
    yield


def test_the_model_owns_nothing_of_steering(
    llama: Path, tiny_probes: Callable[[Path], dict[str, Path]]
) -> None:
    """Weight reload walks the model's parameters, sleep its buffers: both are the plain model's."""
    plain = worker(start_engine(llama)).model_runner.get_model()
    steered_worker = worker(start_engine(llama, tiny_probes(llama), steering={"layers": "all"}))
    steered = steered_worker.model_runner.get_model()
    for walk in (nn.Module.named_parameters, nn.Module.named_buffers, nn.Module.named_modules):
        assert [name for name, _ in walk(steered)] == [name for name, _ in walk(plain)]
    assert isinstance(steered_worker.ksteer_state, SteeringState)
    assert not isinstance(steered_worker.ksteer_state, nn.Module)
