"""Sleep mode: an engine that gives up its weights and cache for a while, and wakes up (RL loops).

vLLM's CPU build refuses the flag, and its worker sleeps by doing nothing; everything above the worker runs.
So what a GPU worker does to memory is done here by `Forgetting`, and a second test shows that what it leaves
alone is what vLLM's pools leave alone, with an allocator that only writes down when it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ksteer_vllm
from ksteer_vllm.device.state import SteeringState
from testbed.compare import assert_same
from tests.claims.matrix.cases import SPECS, prompts
from tests.support.engines import OPTIONS, generate, sampling, start_engine, token_prompt, worker
from tests.support.oracle import Oracle

STALE = 7.0
"""What memory holds that was given up and came back."""


class Forgetting:
    """What vLLM's GPU worker does: level 1 keeps a copy of weights and buffers, level 2 of the buffers only;
    the KV cache is lost in both."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.kept: dict[str, torch.Tensor] = {}
        self.slept: list[int] = []
        self.woken: list[list[str] | None] = []

    def sleep(self, level: int = 1) -> None:
        self.slept.append(level)
        tensors = self._tensors()
        kept = tensors if level == 1 else dict(self.runner.model.named_buffers())
        self.kept = {name: tensor.clone() for name, tensor in kept.items()}
        for tensor in chain(tensors.values(), self.runner.kv_caches):
            tensor.data.fill_(STALE)

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.woken.append(tags)
        if tags is None or "weights" in tags:
            tensors = self._tensors()
            for name, kept in self.kept.items():
                tensors[name].data.copy_(kept)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(chain(self.runner.model.named_parameters(), self.runner.model.named_buffers()))


@pytest.fixture
def sleeper(
    llama: Path, tiny_probes: Callable[[Path], dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Forgetting]:
    """An engine whose worker forgets when it sleeps, and what it did."""
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"})
    forgetting = Forgetting(worker(llm).model_runner)
    for name in ("sleep", "wake_up"):
        monkeypatch.setattr(worker(llm), name, getattr(forgetting, name))
    return llm, forgetting


def test_steering_after_sleep(
    sleeper: tuple[Any, Forgetting],
    llama: Path,
    tiny_model: Callable[..., Path],
    oracle_of: Callable[[Path], Oracle],
) -> None:
    """Level 1 brings the same model back; after level 2 an RL loop brings new weights. Nothing of steering is
    loaded again."""
    llm, forgetting = sleeper
    asked = [prompts(1, seed=3)[0]] * len(SPECS)
    specs = list(SPECS.values())
    oracle_of(llama).check(SPECS, asked, generate(llm, asked, specs), "before")

    llm.sleep(level=1)
    assert llm.llm_engine.is_sleeping()
    llm.wake_up()
    oracle_of(llama).check(SPECS, asked, generate(llm, asked, specs), "level 1")

    other = tiny_model("llama", 5)
    llm.sleep(level=2)
    llm.wake_up(tags=["weights"])
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
    llm.wake_up(tags=["kv_cache"])
    oracle_of(other).check(SPECS, asked, generate(llm, asked, specs), "level 2, new weights")
    assert forgetting.slept == [1, 2]
    assert forgetting.woken == [None, ["weights"], ["kv_cache"]]


@pytest.mark.parametrize("level", [0, 1])
def test_requests_kept_through_sleep_go_on_steered(sleeper: tuple[Any, Forgetting], level: int) -> None:
    """Level 0 pauses only; level 1 loses the cache, and what was generated is computed again: windows count
    from where they did."""
    llm, forgetting = sleeper
    engine = llm.llm_engine
    asked = prompts(len(SPECS), seed=4)
    expected = generate(llm, asked, list(SPECS.values()))
    assert llm.reset_prefix_cache()
    for index, (prompt, spec) in enumerate(zip(asked, SPECS.values(), strict=True)):
        engine.add_request(f"kept-{level}-{index}", token_prompt(prompt), sampling(spec))
    for _ in range(5):
        assert not any(output.finished for output in engine.step())
    llm.sleep(level=level, mode="keep")
    assert engine.is_sleeping()
    assert engine.step() == []
    llm.wake_up(tags=["scheduling"] if level == 0 else None)
    finished: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
    for index, output in enumerate(expected):
        assert_same(finished[f"kept-{level}-{index}"], output)
    assert forgetting.slept == [1] * level


def test_the_cpu_build_refuses_the_flag_itself(llama: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = {**OPTIONS, "enable_sleep_mode": True, "additional_config": ksteer_vllm.enable(layers=[1])}
    with pytest.raises(ValueError, match="Sleep mode is not supported on current platform"):
        EngineArgs(model=str(llama), **arguments).create_engine_config()


def test_steering_memory_is_outside_what_sleep_discards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 2 drops what was allocated in the pools named `weights` and `kv_cache`, and restores only the
    model's buffers: ours is allocated when the worker's load_model has closed its pool, and is no buffer."""
    from vllm.v1.worker.gpu_worker import Worker
    from vllm.v1.worker.worker_base import WorkerWrapperBase

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

    from ksteer_vllm.host import attaching

    monkeypatch.setattr(attaching, "attach_to_worker", attach)
    monkeypatch.setattr("vllm.v1.worker.gpu_worker.set_current_vllm_config", lambda config: nullcontext())
    wrapper = WorkerWrapperBase.__new__(WorkerWrapperBase)
    wrapper.worker = TinyWorker()
    wrapper.vllm_config = wrapper.worker.vllm_config
    monkeypatch.setattr("vllm.v1.worker.worker_base.set_current_vllm_config", lambda config: nullcontext())
    wrapper.init_device()
    wrapper.worker.load_model()
    assert seen == [("weights loaded", ["weights"]), ("steering attached", [])]


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
