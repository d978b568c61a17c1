"""What engines of the workbench are started with, and what its requests say."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import vllm
from safetensors.torch import save
from torch import equal, ones

from ksteer_vllm.bench import engines
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


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "LLM", FakeEngine)


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
