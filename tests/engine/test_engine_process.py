"""The engine in a process of its own: LLM and AsyncLLM."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

import ksteer_vllm
from ksteer_vllm import SteeringSpec, report
from testbed.compare import assert_all_same, assert_differ, assert_same
from tests.engine.async_reports import check_async_reports
from tests.engine.reports import CASES, wanting
from tests.support.engines import (
    OPTIONS,
    generate,
    generate_one,
    sampling,
    start_engine,
    token_prompt,
)

SPEC = SteeringSpec(probe="tones", target=["warm"], avoid=["cold"], alpha=0.9, where="both")


@pytest.mark.slow
def test_a_spec_object_reaches_an_engine_in_its_own_process(
    llama: Path,
    probes: dict[str, Path],
    engine: Any,
    vllm_environment: Callable[..., None],
    prompts: Callable[..., list[list[int]]],
) -> None:
    """Objects do not pass the engine's socket; the canonical dict does. The caller keeps the object."""
    asked = prompts(3, 40)
    specs = [SPEC, None, {"probe": "moods", "avoid": ["sad"], "method": "reflect"}]
    expected = generate(engine, asked, specs)
    vllm_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1")
    llm = start_engine(llama, probes, steering={"layers": "all"})
    try:
        assert not hasattr(llm.llm_engine.engine_core, "engine_core"), "the engine runs in this process"
        params = [sampling(spec, other={"theirs": 1}) for spec in specs]
        before = copy.deepcopy([p.extra_args for p in params])
        outputs = llm.generate([token_prompt(p) for p in asked], params, use_tqdm=False)
        assert_all_same(outputs, expected, "engine in its own process")
        assert_differ(outputs[0], generate_one(llm, asked[0]))
        assert [p.extra_args for p in params] == before
        assert params[0].extra_args["ksteer"] is SPEC
        with pytest.raises(ValueError, match=r"ksteer\.probe"):
            generate_one(llm, asked[0], {"probe": "x", "target": ["warm"]})
        (counters,) = llm.collective_rpc("ksteer_counters")
        assert counters["requests"] == 2
        assert llm.reset_prefix_cache()
        assert_same(generate_one(llm, asked[0], SPEC), expected[0])
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.mark.slow
def test_async_llm(
    llama: Path, probes: dict[str, Path], engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """Steered, plain, refused and aborted requests at once; streaming-input sessions refuse a spec; reports
    with every kind of output, slow readers, several completions and clients that leave."""
    asked = prompts(6, 40, seed=1)
    specs = [
        SPEC,
        None,
        SPEC.canonical(),
        None,
        {"probe": "tones", "avoid": ["dry"], "method": "project"},
        SPEC,
    ]
    engine.reset_prefix_cache()
    expected = generate(engine, asked, specs)
    reporting = prompts(len(CASES), 40, seed=11)
    reports = [report(output) for output in generate(engine, reporting, list(map(wanting, CASES.values())))]

    async def drive() -> list[Any]:
        llm = _async_llm(llama, probes)
        try:
            outputs = await _drive(llm, asked, specs)
            await check_async_reports(llm, reporting, reports)
            return outputs
        finally:
            llm.shutdown()

    assert_all_same(asyncio.run(drive()), expected, "AsyncLLM")


def _async_llm(llama: Path, probes: dict[str, Path]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    enabled = ksteer_vllm.enable(probes=probes, layers="all")
    return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(llama), **OPTIONS, additional_config=enabled))


async def _drive(llm: Any, asked: list[list[int]], specs: list[Any]) -> list[Any]:
    running = [_last(llm, p, spec, f"run-{i}") for i, (p, spec) in enumerate(zip(asked, specs, strict=True))]
    aborted = [_stop_after(llm, asked[0], spec, f"stop-{i}", 2 + i) for i, spec in enumerate(specs)]
    outputs = await asyncio.gather(*running, *aborted, _refused(llm, asked[0]), _sessions(llm, asked[0]))
    later = await asyncio.gather(
        *(_last(llm, p, s, f"later-{i}") for i, (p, s) in enumerate(zip(asked, specs, strict=True)))
    )
    assert_all_same(list(later), list(outputs[: len(asked)]), "the same requests again")
    return list(outputs[: len(asked)])


async def _last(llm: Any, prompt: list[int], spec: Any, request_id: str, **changes: Any) -> Any:
    last = None
    async for output in llm.generate(token_prompt(prompt), sampling(spec, **changes), request_id):
        last = output
    return last


async def _stop_after(llm: Any, prompt: list[int], spec: Any, request_id: str, steps: int) -> None:
    """A client that goes away: closing the generator aborts the request."""
    stream = llm.generate(token_prompt(prompt), sampling(spec, max_tokens=200), request_id)
    for _ in range(steps):
        await anext(stream)
    await stream.aclose()


async def _refused(llm: Any, prompt: list[int]) -> None:
    """At the call, before anything is streamed."""
    for index, bad in enumerate(
        ({"probe": "x", "target": ["warm"]}, {**SPEC.canonical(), "where": {"prompt": [99, None]}})
    ):
        with pytest.raises(ValueError, match=r"ksteer\."):
            llm.generate(token_prompt(prompt), sampling(bad), f"bad-{index}")


async def _sessions(llm: Any, prompt: list[int]) -> None:
    """Streaming-input sessions: a spec in the session's parameters, or in one piece's."""
    from vllm.engine.protocol import StreamingInput
    from vllm.sampling_params import RequestOutputKind

    async def pieces(params: Any) -> AsyncGenerator[Any, None]:
        yield StreamingInput(prompt=token_prompt(prompt), sampling_params=params)

    delta = {"output_kind": RequestOutputKind.DELTA}
    for name, whole, piece in (
        ("session", sampling(SPEC, **delta), None),
        ("piece", sampling(**delta), sampling(SPEC, **delta)),
    ):
        with pytest.raises(ValueError, match="not supported in streaming-input sessions"):
            async for _ in llm.generate(pieces(piece), whole, f"session-{name}"):
                pass
    assert len((await _last(llm, prompt, None, "after-sessions")).outputs[0].token_ids) == 12
