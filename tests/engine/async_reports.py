"""Reports of an AsyncLLM: every kind of output, slow readers, several completions, clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ksteer_vllm.report import report
from tests.engine.reports import (
    CASES,
    TOLERANCE,
    VISIBLE,
    WARM,
    check_same,
    distance,
    layers_of,
    wanting,
)
from tests.support.engines import sampling, token_prompt


async def check_async_reports(llm: Any, asked: Sequence[list[int]], expected: Sequence[Any]) -> None:
    """Each of CASES on an AsyncLLM, one prompt each, against the reports of an engine that ran them so."""
    from vllm.sampling_params import RequestOutputKind

    specs = list(CASES.values())

    async def ask(index: int, spec: Any, name: str, pause: float = 0, **changes: Any) -> list[Any]:
        """The reports, in order of completions; each comes with the last output of its completion."""
        reports: dict[int, Any] = {}
        params = sampling(spec, **changes)
        async for output in llm.generate(token_prompt(asked[index]), params, f"{name}-{index}"):
            for completion in output.outputs:
                found = report(completion)
                assert (found is not None) == (completion.finished() and spec is not WARM)
                if found is not None:
                    reports[completion.index] = found
            await asyncio.sleep(pause)
        return [reports[index] for index in sorted(reports)]

    async def leave(index: int, steps: int) -> None:
        stream: AsyncIterator[Any] = llm.generate(
            token_prompt(asked[index]), sampling(wanting(specs[index]), max_tokens=200), f"leave-{index}"
        )
        for _ in range(steps):
            await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    for kind in RequestOutputKind:
        running = [
            ask(i, wanting(spec), kind.name, pause, output_kind=kind)
            for pause in (0, 0.3)  # a slow reader gets outputs merged
            for i, spec in enumerate(specs)
        ]
        plain = ask(0, WARM, f"{kind.name}-plain", output_kind=kind)
        *answers, nothing = await asyncio.gather(*running, plain)
        assert nothing == []
        for index, found in enumerate(answers):
            check_same(*found, expected[index % len(specs)], kind.name)
        sampled = {"n": 3, "temperature": 1.0, "seed": 3, "output_kind": kind}
        several, *_ = await asyncio.gather(
            ask(1, wanting(specs[1]), f"{kind.name}-n", **sampled),
            ask(1, wanting(specs[1]), f"{kind.name}-n", 0.3, **sampled),
            *(leave(i, 2 + i) for i in range(3)),
        )
        first, *others = (layers_of(found)[0] for found in several)
        assert len(others) == 2
        for other in others:
            assert list(other) == list(first) == list(range(40 + 11))
            assert distance(other[20], first[20]) < TOLERANCE
            assert distance(other[50], first[50]) > VISIBLE
    desk = llm.output_processor.ksteer_desk
    await ask(0, wanting(specs[0]), "before")  # takes along what the slowest of those that left have left
    await leave(0, 3)
    assert len(desk._abandoned) == 1  # the next report takes it along
    await ask(0, wanting(specs[0]), "last")
    assert not desk._abandoned
    assert not desk._running
