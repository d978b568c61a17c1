"""What engines of the workbench are started with, and what its requests say."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm
from safetensors.torch import save
from torch import bfloat16, equal, ones

from ksteer_vllm.bench import engines
from ksteer_vllm.errors import UsageError
from ksteer_vllm.spec.capture import CAPTURE_KEY, capture_window, check_capture


class FakeEngine:
    """Keeps what it was started with, and whether it was stopped."""

    def __init__(self, model: str, **options: Any) -> None:
        self.model, self.options, self.stopped = model, options, 0
        self.llm_engine = self
        self.engine_core = self

    def shutdown(self) -> None:
        self.stopped += 1

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[bytes]:
        assert method == "ksteer_take_captures"
        (names,) = args
        return [save({f"{layer}/{name}": ones(2, 3) for name in names or ("b",)}) for layer in (1, 1, 2)] + [
            b""
        ]


CONFIG = SimpleNamespace(
    get_total_num_kv_heads=lambda: 2,
    get_head_size=lambda: 16,
    hf_text_config=SimpleNamespace(num_hidden_layers=4),
    dtype=bfloat16,
    max_model_len=896,
)
"""A model whose longest sequence, 896 tokens and a block, takes 512 KiB: 2 x 4 layers x 64 bytes a token."""


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "LLM", FakeEngine)
    monkeypatch.setattr(engines, "model_config", lambda *_: CONFIG)


def test_an_engine_steers_only_if_asked_to() -> None:
    assert "additional_config" not in engines.start_engine("m").options
    steered = engines.start_engine("m", {"dtype": "float32"}, steering={"max_width": 300})
    assert steered.options["dtype"] == "float32"
    assert steered.options["use_tqdm_on_load"] is False
    assert steered.options["additional_config"]["ksteer"]["max_width"] == 300


@pytest.mark.parametrize(
    ("on_cpu", "seeded", "given", "chunked"),
    [
        (True, True, {}, False),
        (True, True, {"enable_chunked_prefill": True}, True),
        (True, False, {}, None),
        (False, True, {}, None),
    ],
)
def test_seeded_requests_on_a_cpu_have_their_prompts_computed_whole(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool, seeded: bool, given: dict[str, Any], chunked: bool | None
) -> None:
    monkeypatch.setattr(engines, "on_cpu", lambda: on_cpu)
    options = engines.start_engine("m", given, seeded=seeded).options
    assert options.get("enable_chunked_prefill") is chunked


@pytest.mark.parametrize(
    ("on_cpu", "given", "mebibytes"),
    [
        (True, {}, 128),
        (True, {"max_num_seqs": 32}, 16),
        (True, {"kv_cache_memory_bytes": 9 << 20}, 9),
        (True, {"gpu_memory_utilization": 0.1}, None),
        (True, {"num_gpu_blocks_override": 9}, None),
        (False, {}, None),
    ],
)
def test_the_cache_is_what_the_sequences_need(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool, given: dict[str, Any], mebibytes: int | None
) -> None:
    monkeypatch.setattr(engines, "on_cpu", lambda: on_cpu)
    monkeypatch.setattr(engines, "free_memory", lambda: 8 << 30)
    size = engines.start_engine("m", given).options.get("kv_cache_memory_bytes")
    assert size == (None if mebibytes is None else mebibytes << 20)


def test_the_cache_leaves_memory_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "on_cpu", lambda: True)
    for free, most in ((64 << 20, 16 << 20), (1 << 10, 512 << 10)):  # a quarter; but one sequence has to fit
        monkeypatch.setattr(engines, "free_memory", lambda free=free: free)
        assert engines.start_engine("m").options["kv_cache_memory_bytes"] == most
    monkeypatch.setattr(engines, "free_memory", lambda: 1 << 40)
    many = engines.start_engine("m", {"max_num_seqs": 1 << 20}).options
    assert many["kv_cache_memory_bytes"] == 2 << 30


def test_an_engine_takes_what_is_free_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "on_cpu", lambda: False)
    for free, share in ((140, 0.9), (70, 0.45), (14, 0.09)):
        monkeypatch.setattr(engines, "gpu_memory", lambda free=free: (free, 140))
        assert engines.start_engine("m").options["gpu_memory_utilization"] == pytest.approx(share)
        assert (
            engines.start_engine("m", {"gpu_memory_utilization": 0.3}).options["gpu_memory_utilization"]
            == 0.3
        )
        assert "gpu_memory_utilization" not in engines.start_engine("m", {"kv_cache_memory_bytes": 9}).options


def test_a_failure_that_the_caller_can_mend_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Any:
        def start(model: str, **options: Any) -> Any:
            raise error

        return start

    monkeypatch.setattr(vllm, "LLM", failing(ValueError("No available memory for the cache blocks. Try")))
    with pytest.raises(UsageError, match=r"^model m: No available memory for the cache blocks; there"):
        engines.start_engine("m")
    for other in (RuntimeError("a bug"), UsageError("ours")):
        monkeypatch.setattr(vllm, "LLM", failing(other))
        with pytest.raises(type(other), match=f"^{other}$"):
            engines.start_engine("m")


def test_a_model_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    for name in (f"{tmp_path}/absent", "./absent", "a/b/c"):
        with pytest.raises(UsageError, match=r"model .*: no such folder"):
            engines.model_of(name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"model {tmp_path}: .+"):
        engines.start_engine(str(tmp_path))


def test_an_engine_is_stopped_whatever_happens() -> None:
    with engines.running_engine("m") as llm:
        assert llm.stopped == 0
    assert llm.stopped == 1
    with contextlib.suppress(RuntimeError), engines.running_engine("m") as llm:
        raise RuntimeError
    assert llm.stopped == 1


def test_a_greedy_request_has_no_seed() -> None:
    assert engines.generation_params(temperature=0, max_tokens=5, seed=3).seed is None
    params = engines.generation_params(temperature=1, max_tokens=5, seed=3, spec={"probe": "p"}, top_k=9)
    assert (params.seed, params.max_tokens, params.top_k) == (3, 5, 9)
    assert params.extra_args == {"ksteer": {"probe": "p"}}


def test_a_reading_request_takes_one_token_and_says_what_to_record() -> None:
    plain = engines.reading_params()
    assert (plain.max_tokens, plain.temperature, plain.detokenize, plain.extra_args) == (1, 0.0, False, None)
    window = capture_window("a", 2, 5)
    check_capture(window)
    assert engines.reading_params(capture=window).extra_args == {CAPTURE_KEY: window}


def test_captures_of_all_workers_are_taken_together() -> None:
    found = engines.take_captures(FakeEngine("m"), ["a"])
    assert set(found) == {"1/a", "2/a"}
    assert equal(found["1/a"], ones(2, 3))
    assert set(engines.take_captures(FakeEngine("m"))) == {"1/b", "2/b"}
