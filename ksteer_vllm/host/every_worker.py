"""Asking every worker of every engine that a server's front end talks to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

__all__ = ["BARRIER", "LOAD", "RESIDENT", "UNLOAD", "ask_every_worker"]

LOAD, UNLOAD, RESIDENT, BARRIER = "ksteer_load", "ksteer_unload", "ksteer_resident", "ksteer_barrier"
"""Methods of `host.rpc`. BARRIER does nothing: its answer shows that everything sent before has arrived."""


async def ask_every_worker(engine_core: Any, method: str, arguments: Sequence[Any] = ()) -> list[Any]:
    """Call a method of `host.rpc` on every worker of every engine.

    With data parallelism each engine is asked in turn: vLLM's own collective_rpc reaches only one.

    Args:
        engine_core: AsyncLLM's client.
        method: The method's name.
        arguments: Its arguments.

    Returns:
        The workers' answers, engine by engine.
    """
    engines = getattr(engine_core, "core_engines", ())
    if len(engines) <= 1:
        answers: list[Any] = await engine_core.collective_rpc_async(method, None, list(arguments))
        return answers
    call = ("collective_rpc", method, None, list(arguments), None)
    found = await asyncio.gather(
        *(engine_core._call_utility_async(*call, engine=engine) for engine in engines)
    )
    return [answer for workers in found for answer in workers]
