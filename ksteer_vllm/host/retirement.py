"""Unloading probes that no name refers to any more, once no request can need them.

Each front end marks the generation of the catalog before which nothing it admitted is still on its way to
an engine: its admissions have ended, and a barrier sent after them on its own sockets was answered.
Once all front ends have passed the generation in which a probe lost its name, only requests in a scheduler
can need it, and the engine core knows those (`host.engine_core`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ksteer_vllm.admission.catalog import Catalog
from ksteer_vllm.admission.live import LiveRegistry
from ksteer_vllm.errors import LifecycleError
from ksteer_vllm.host.changes import ask, changing, write
from ksteer_vllm.host.every_worker import BARRIER, UNLOAD

__all__ = ["Retirement"]

PAUSE = 0.2
"""Seconds between two checks for a changed catalog, or a probe that can be unloaded."""
FAILURE_PAUSE = 10.0

logger = logging.getLogger("vllm.ksteer")


class Retirement:
    """One front end's part in unloading probes."""

    def __init__(self, engine_core: Any, live: LiveRegistry) -> None:
        self._engine_core = engine_core
        self._live = live
        self._seen = 0
        self.orphans: set[str] = set()
        """Digests that some workers may hold although no catalog names them: loads that failed half way."""

    async def follow(self) -> None:
        """For as long as the server runs, mark what has arrived, and unload what is due."""
        while True:
            try:
                await self._settle()
                if self._live.store.read().retiring or self.orphans:
                    await self.collect()
            except (
                LifecycleError
            ) as error:  # the engine is asleep or gone, or another front end is making a change
                logger.debug("retirement waits: %s", error)
            except Exception:  # if this stopped, nothing would ever be unloaded again
                logger.exception("retirement failed; trying again")
                await asyncio.sleep(FAILURE_PAUSE)
            await asyncio.sleep(PAUSE)

    async def collect(self) -> None:
        """Unload what can go now. Raises LifecycleError."""
        await self._settle()
        for digest in list(self._live.store.read().retiring):
            async with changing(self._live.store) as catalog:
                await self._drop(catalog, digest)
        for digest in list(self.orphans):
            async with changing(self._live.store) as catalog:
                if digest in catalog.digests or await self._unloaded(digest):
                    self.orphans.discard(digest)

    async def _settle(self) -> None:
        store = self._live.store
        generation = store.read().generation
        if generation > self._seen and self._live.settled(generation):
            await ask(self._engine_core, BARRIER)
            self._seen = generation
            store.mark_seen(generation)

    async def _drop(self, catalog: Catalog, digest: str) -> None:
        item, store = catalog.retiring.get(digest), self._live.store
        if item is None or not store.all_seen(item.since):
            return
        if await self._unloaded(digest):
            await write(store, catalog.without_retiring(digest))

    async def _unloaded(self, digest: str) -> bool:
        return all(answer["ok"] for answer in await ask(self._engine_core, UNLOAD, digest))
