"""Run as a program: MODEL PROBES (JSON: name -> folder). Drives AsyncLLM with two data-parallel ranks.

Prints what each rank answered, its reports and the counters of both, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import ksteer_vllm
from tests.claims.matrix.cases import ASKED, as_json, reporting
from tests.support.engines import OPTIONS, prepare_environment, sampling, token_prompt

REFUSED: list[dict[str, Any]] = [
    {"probe": "absent", "target": ["warm"]},
    {"probe": "tones", "target": ["warm"], "alpha": 1, "where": {"prompt": [999, None]}},
]


def main(model: str, probes: dict[str, str]) -> None:
    prepare_environment()
    print("RESULT " + json.dumps(asyncio.run(_drive(model, probes))))


async def _drive(model: str, probes: dict[str, str]) -> dict[str, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    enabled = ksteer_vllm.enable(probes=probes, layers="all")
    arguments = {**OPTIONS, "data_parallel_size": 2, "additional_config": enabled}
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **arguments))
    try:
        tasks = [_answer(llm, rank, index) for rank in (0, 1) for index in range(len(ASKED))]
        answers = await asyncio.gather(*tasks)
        refusals = [_refusal(llm, rank, spec) for rank in (0, 1) for spec in REFUSED]
        after = await _answer(llm, 1, 0, "after")
        client = llm.engine_core
        call = ("collective_rpc", "ksteer_counters", None, (), None)
        counters = await asyncio.gather(
            *(client._call_utility_async(*call, engine=engine) for engine in client.core_engines)
        )
        return {"answers": [*answers, after], "refusals": refusals, "counters": counters}
    finally:
        llm.shutdown()


async def _answer(llm: Any, rank: int, index: int, name: str = "run") -> dict[str, Any]:
    prompt, spec = ASKED[index]
    last = None
    stream = llm.generate(
        token_prompt(prompt),
        sampling(reporting(spec)),
        f"{name}-{rank}-{index}",
        data_parallel_rank=rank,
    )
    async for output in stream:
        last = output
    assert last is not None
    return as_json(last)


def _refusal(llm: Any, rank: int, spec: dict[str, Any]) -> str:
    try:
        llm.generate(token_prompt(ASKED[0][0]), sampling(spec), f"bad-{rank}", data_parallel_rank=rank)
    except ValueError as refusal:
        return str(refusal)
    return ""


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
