"""Whatever the scheduler does to a steered request, its output is that of an undisturbed run.

Undisturbed: alone, cold prefix cache, the prompt in one piece. Tolerances as in `testbed.compare`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

from ksteer_vllm.host.version import vllm_version
from testbed.compare import TOLERANCE, assert_all_same, assert_differ, assert_same, largest_difference
from tests.support.engines import (
    async_scheduling,
    counter,
    generate,
    generate_one,
    sampling,
    start_engine,
    token_prompt,
    wants_v2_runner,
    worker,
)

SPECS: list[dict[str, Any]] = [
    {"probe": "tones", "target": ["warm"], "alpha": 0.8, "num_steps": 3, "where": where}
    for where in (
        "generation",
        "prompt",
        "both",
        {"prompt": [10, 31]},
        {"prompt": [0, 7], "generation": [2, 9]},
        {"generation": [5, None]},
    )
]


@pytest.fixture(scope="module")
def undisturbed(llama: Path, probes: dict[str, Path]) -> Callable[..., list[Any]]:
    """(prompts, specs, sampling changes) -> outputs of an engine that runs each alone, without a cache."""
    llm = start_engine(llama, probes, steering={"layers": "all"}, enable_prefix_caching=False)

    def run(asked: list[list[int]], specs: list[Any], **changes: Any) -> list[Any]:
        return [generate_one(llm, prompt, spec, **changes) for prompt, spec in zip(asked, specs, strict=True)]

    return run


@pytest.mark.parametrize("scheduling", [nullcontext, async_scheduling])
def test_chunked_prefill(
    llama: Path,
    probes: dict[str, Path],
    prompts: Callable[..., list[list[int]]],
    undisturbed: Callable[..., list[Any]],
    scheduling: Callable[[], Any],
) -> None:
    """A step takes 16 tokens, a prompt has 40: windows lie in, across and outside the chunks."""
    with scheduling():
        llm = start_engine(
            llama,
            probes,
            steering={"layers": "all"},
            max_num_batched_tokens=16,
            max_num_seqs=8,
            enable_chunked_prefill=True,
        )
    config = llm.llm_engine.vllm_config.scheduler_config
    assert config.async_scheduling is (scheduling is async_scheduling)
    asked = prompts(len(SPECS) + 1, 40)
    chunked = generate(llm, asked, [*SPECS, None])
    assert_all_same(chunked, undisturbed(asked, [*SPECS, None]), "chunked prefill")
    for output, plain in zip(chunked[:-1], undisturbed(asked[:-1], [None] * len(SPECS)), strict=True):
        assert_differ(output, plain)


@pytest.mark.parametrize("scheduling", [nullcontext, async_scheduling])
def test_forced_preemption(
    llama: Path,
    probes: dict[str, Path],
    prompts: Callable[..., list[list[int]]],
    undisturbed: Callable[..., list[Any]],
    scheduling: Callable[[], Any],
) -> None:
    """Ten blocks for seven requests of three blocks each: some are thrown out and computed again."""
    with scheduling():
        llm = start_engine(
            llama, probes, steering={"layers": "all"}, num_gpu_blocks_override=11, max_model_len=128
        )
    asked = prompts(len(SPECS) + 1, 30, seed=1)
    before = counter(llm, "vllm:num_preemptions")
    disturbed = generate(llm, asked, [*SPECS, None], max_tokens=40)
    assert counter(llm, "vllm:num_preemptions") > before, "nothing was preempted"
    expected = undisturbed(asked, [*SPECS, None], max_tokens=40)
    assert_all_same(disturbed, expected, "preemption")
    for output, spec in zip(disturbed[:-1], SPECS, strict=True):
        assert_differ(output, disturbed[-1], str(spec))


def test_n_completions_are_each_steered(
    engine: Any, prompts: Callable[..., list[list[int]]], undisturbed: Callable[..., list[Any]]
) -> None:
    """Completion i of a request with seed s is what a request of its own with seed s + i samples."""
    if wants_v2_runner() and vllm_version() < Version("0.32"):
        pytest.skip("this vLLM's sampling kernel does not run in Triton's interpreter")
    asked = prompts(1, 30, seed=2)
    for spec in [*SPECS[:3], None]:
        four = generate(engine, asked, [spec], n=4, temperature=0.8, seed=20)[0]
        assert len(four.outputs) == 4
        assert len({tuple(completion.token_ids) for completion in four.outputs}) > 1
        for index in range(4):
            alone = undisturbed(asked, [spec], temperature=0.8, seed=20 + index)[0]
            completion = SimpleNamespace(outputs=[four.outputs[index]])
            assert largest_difference(completion, alone)[0] < TOLERANCE
        first = SimpleNamespace(outputs=[four.outputs[0]])
        if spec is not None:
            assert_differ(first, undisturbed(asked, [None], temperature=0.8, seed=20)[0])


def test_aborts_leave_the_other_requests_alone(
    engine: Any, prompts: Callable[..., list[list[int]]], undisturbed: Callable[..., list[Any]]
) -> None:
    """Steered and plain requests are aborted mid-generation; new ones take their rows at once."""
    asked = prompts(8, 20, seed=3)
    specs = [SPECS[0], None, SPECS[2], SPECS[1], None, SPECS[4], SPECS[5], SPECS[2]]
    low_level = engine.llm_engine
    finished: dict[str, Any] = {}

    def steps(count: int) -> None:
        for _ in range(count):
            finished.update({o.request_id: o for o in low_level.step() if o.finished})

    def add(index: int) -> str:
        low_level.add_request(f"abort-{index}", token_prompt(asked[index]), sampling(specs[index]))
        return f"abort-{index}"

    for index in range(4):
        add(index)
    steps(4)
    low_level.abort_request(["abort-0", "abort-1", "abort-3"])
    for index in range(4, 8):
        add(index)
    steps(2)
    low_level.abort_request(["abort-5"])
    while low_level.has_unfinished_requests():
        steps(1)
    assert sorted(finished) == ["abort-2", "abort-4", "abort-6", "abort-7"]
    kept = [2, 4, 6, 7]
    expected = undisturbed([asked[i] for i in kept], [specs[i] for i in kept])
    assert_all_same([finished[f"abort-{i}"] for i in kept], expected, "aborts")
    generate_one(engine, asked[0], max_tokens=2)  # the step that reports the last requests as finished
    assert worker(engine).ksteer_state.num_steered == 0


def test_chat(engine: Any) -> None:
    """`LLM.chat` steers like `LLM.generate` on the tokens of the rendered prompt."""
    messages = [{"role": "w7", "content": "w10 w11 w12"}]
    outputs = {}
    for name, spec in (("plain", None), ("steered", SPECS[2])):
        outputs[name] = engine.chat(messages, sampling(spec), use_tqdm=False)[0]
    assert_differ(outputs["steered"], outputs["plain"])
    tokens = outputs["steered"].prompt_token_ids
    assert_same(outputs["steered"], generate_one(engine, tokens, SPECS[2]))


def test_steered_and_plain_in_one_engine_step_by_step(
    engine: Any, prompts: Callable[..., list[list[int]]], undisturbed: Callable[..., list[Any]]
) -> None:
    """Requests join while others decode: prefill and decode of different specs share steps."""
    asked = prompts(6, 24, seed=4)
    specs = [SPECS[2], None, SPECS[3], SPECS[0], None, SPECS[5]]
    low_level = engine.llm_engine
    finished: dict[str, Any] = {}
    for index in range(6):
        low_level.add_request(f"join-{index}", token_prompt(asked[index]), sampling(specs[index]))
        for _ in range(3):
            finished.update({o.request_id: o for o in low_level.step() if o.finished})
    while low_level.has_unfinished_requests():
        finished.update({o.request_id: o for o in low_level.step() if o.finished})
    outputs = [finished[f"join-{index}"] for index in range(6)]
    assert_all_same(outputs, undisturbed(asked, specs), "joining requests")
