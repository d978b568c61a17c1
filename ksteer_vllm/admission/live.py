"""The registry of a running engine: rebuilt whenever the catalog has changed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ksteer_vllm.admission.catalog import Catalog
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.store import CatalogStore
from ksteer_vllm.config import ResolvedConfig

__all__ = ["LiveRegistry"]


class LiveRegistry:
    """What requests can ask for now, and which admitted requests are still on their way to the engine.

    Args:
        config: The engine's options.
        store: Where the catalog is kept; by default in memory, with what the engine starts with.
    """

    def __init__(self, config: ResolvedConfig, store: CatalogStore | None = None) -> None:
        self.config = config
        self.store = store or CatalogStore(Catalog.of(config))
        self._guard = threading.Lock()
        catalog = self.store.read()
        self._snapshot = catalog, self.registry_of(catalog)
        self._admitting: Counter[int] = Counter()

    def registry_of(self, catalog: Catalog) -> Registry:
        """The registry of a catalog. Raises ConfigError if one of its presets cannot be run."""
        return Registry(catalog.probes, self.config, catalog.presets)

    @property
    def current(self) -> Registry:
        """The registry of the catalog as it is now."""
        catalog, known = self.store.read(), self._snapshot
        if known[0] is catalog:
            return known[1]
        registry = self.registry_of(catalog)
        with self._guard:
            if self._snapshot[0].generation <= catalog.generation:
                self._snapshot = catalog, registry
        return registry

    def share(self, store: CatalogStore) -> None:
        """Take the catalog from a store shared with other front ends. Call it before the first request."""
        self.store.close()
        self.store = store

    def labels(self, digests: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Digest -> labels, for the probes an admitted request uses.

        The catalog knows them all until the request has finished.
        """
        catalog = self.store.read()
        known = {probe.digest: probe.labels for probe in catalog.probes.values()}
        known |= {digest: item.metadata.labels for digest, item in catalog.retiring.items()}
        return {digest: known[digest] for digest in digests}

    @contextmanager
    def admitting(self) -> Iterator[None]:
        """A context inside which a request is admitted and handed to the engine."""
        generation = self.store.read().generation
        with self._guard:
            self._admitting[generation] += 1
        try:
            yield
        finally:
            with self._guard:
                self._admitting[generation] -= 1
                if not self._admitting[generation]:
                    del self._admitting[generation]

    def settled(self, generation: int) -> bool:
        """Whether no admission that began before `generation` is still under way."""
        with self._guard:
            return all(began >= generation for began in self._admitting)
