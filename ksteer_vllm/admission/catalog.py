"""The catalog: the names of all probes and presets at one moment."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.admission.resolve import configured_probes
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.probes.metadata import ProbeMetadata

__all__ = ["Catalog", "Retiring"]


class Retiring(BaseModel):
    """A probe that no name refers to any more, but that requests admitted earlier may still need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metadata: ProbeMetadata
    since: Annotated[int, Field(description="The first generation in which no name refers to it.")]


class Catalog(BaseModel):
    """Names of probes and presets. Immutable: a change makes a new catalog, the next generation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int = 0
    probes: Annotated[dict[str, ProbeMetadata], Field(description="Name -> probe.")] = {}
    presets: Annotated[dict[str, dict[str, Any]], Field(description="Name -> spec.")] = {}
    retiring: Annotated[dict[str, Retiring], Field(description="Digest -> probe.")] = {}

    @classmethod
    def of(cls, config: ResolvedConfig) -> Catalog:
        """The catalog an engine starts with. Raises ProbeError if a probe folder has changed since."""
        return cls(probes=configured_probes(config), presets=config.presets)

    @property
    def digests(self) -> set[str]:
        """Every probe that requests may need."""
        return {probe.digest for probe in self.probes.values()} | set(self.retiring)

    def with_probe(self, name: str, metadata: ProbeMetadata) -> Catalog:
        """The next catalog, in which `name` is this probe; the probe it named before retires."""
        return self._next({**self.probes, name: metadata})

    def without_probe(self, name: str) -> Catalog:
        """The next catalog, in which nothing has this name."""
        return self._next({other: probe for other, probe in self.probes.items() if other != name})

    def with_presets(self, presets: dict[str, dict[str, Any]]) -> Catalog:
        """The next catalog, with these presets instead of its own."""
        return self.model_copy(update={"generation": self.generation + 1, "presets": presets})

    def without_retiring(self, digest: str) -> Catalog:
        """The next catalog, once the workers have dropped a probe."""
        retiring = {other: item for other, item in self.retiring.items() if other != digest}
        return self.model_copy(update={"generation": self.generation + 1, "retiring": retiring})

    def _next(self, probes: dict[str, ProbeMetadata]) -> Catalog:
        generation = self.generation + 1
        named = {probe.digest for probe in probes.values()}
        left = {p.digest: Retiring(metadata=p, since=generation) for p in self.probes.values()}
        retiring = {d: item for d, item in {**left, **self.retiring}.items() if d not in named}
        return Catalog(generation=generation, probes=probes, presets=self.presets, retiring=retiring)
