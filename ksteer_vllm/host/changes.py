"""What every change of a running server needs: exclusive access, and the workers' answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ksteer_vllm.admission.catalog import Catalog
from ksteer_vllm.admission.store import CatalogStore
from ksteer_vllm.errors import LifecycleError
from ksteer_vllm.host.every_worker import ask_every_worker

__all__ = ["RETRY_AFTER", "ask", "changing", "write"]

PATIENCE = 10.0
"""Seconds a change waits for another one to end."""
PAUSE = 0.02
RETRY_AFTER = 2

logger = logging.getLogger("vllm.ksteer")


@asynccontextmanager
async def changing(store: CatalogStore) -> AsyncIterator[Catalog]:
    """The catalog, locked against other changes. Raises LifecycleError 503 if another one takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not store.try_lock():
        if time.monotonic() > deadline:
            raise LifecycleError(503, "ksteer", "another change is in progress; try again", RETRY_AFTER)
        await asyncio.sleep(PAUSE)
    try:
        yield store.read()
    finally:
        store.unlock()


async def write(store: CatalogStore, catalog: Catalog) -> None:
    """Publish a catalog. Raises LifecycleError 500 if it cannot be written."""
    try:
        await asyncio.to_thread(store.publish, catalog)
    except OSError as error:
        logger.error("the catalog cannot be written: %s", error)
        raise LifecycleError(500, "ksteer", f"the catalog cannot be written: {error.strerror}") from None


async def ask(engine_core: Any, method: str, *arguments: Any) -> list[Any]:
    """Every worker's answer. Raises LifecycleError 503 if the engine does not give one."""
    try:
        return await ask_every_worker(engine_core, method, arguments)
    except Exception as error:
        logger.error("workers could not be asked (%s): %s", method, error)
        raise LifecycleError(503, "ksteer", "the engine did not answer", RETRY_AFTER) from error
