"""Changing a running server's probes and presets: all workers and all API servers, or nothing.

A probe is first loaded into every worker, by its digest; then the catalog gives it the name. Every front end
reads the catalog at each admission, so all new requests see the new probe from the same moment on. A probe
that no name refers to any more retires (`host.retirement`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ksteer_vllm.admission.catalog import Catalog
from ksteer_vllm.admission.folders import find_folder
from ksteer_vllm.admission.live import LiveRegistry
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import check_fit
from ksteer_vllm.admission.store import CatalogStore
from ksteer_vllm.errors import ConfigError, LifecycleError, ProbeError, SpecError, choices, listing
from ksteer_vllm.host.changes import RETRY_AFTER, ask, changing, write
from ksteer_vllm.host.every_worker import LOAD, RESIDENT
from ksteer_vllm.host.retirement import Retirement
from ksteer_vllm.models import model_identity
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.presets import check_name, check_preset
from ksteer_vllm.telemetry import events, metrics

__all__ = ["ServerLifecycle"]

_OUTCOMES = {400: "refused", 403: "refused", 404: "unknown", 409: "conflict", 503: "busy"}

Result = TypeVar("Result")


class ServerLifecycle:
    """The changes one API server makes, and its part in those of the others.

    Methods raise LifecycleError, in which case nothing has changed. A change that has begun is finished, even
    if the client that asked for it has disconnected.

    Args:
        engine_client: The server's AsyncLLM, with steering enabled.
        folder: Shared with the other API servers of the same `vllm serve`; None if there are none.
    """

    def __init__(self, engine_client: Any, folder: Path | None = None) -> None:
        self._engine_core = engine_client.engine_core
        self._live: LiveRegistry = engine_client.input_processor.ksteer_admission.live
        self._identity = model_identity(engine_client.vllm_config.model_config)
        self._retirement = Retirement(self._engine_core, self._live)
        self._tasks: set[asyncio.Task[Any]] = set()
        index = getattr(self._engine_core, "client_index", 0)
        count = getattr(self._engine_core, "client_count", 1)
        self.refuses_changes = ""
        """Why no change can be made here; empty if changes can be made."""
        if folder is not None:
            initial = self._live.store.read()
            self._live.share(CatalogStore(initial, folder, index=index, count=count))
        elif count > 1:
            self.refuses_changes = f"these {count} API servers share no folder (start them with `vllm serve`)"

    def start(self) -> None:
        """Follow the catalog for as long as the running event loop does."""
        self._keep(self._retirement.follow())

    @property
    def registry(self) -> Registry:
        """What requests can ask for now."""
        return self._live.current

    async def residency(self) -> dict[str, Any]:
        """What the workers hold: their number, the digests on any of them, bytes summed over all, and
        slots_total, slots_used and steered requests of the worker with the most."""
        answers = await ask(self._engine_core, RESIDENT)
        return {
            "workers": len(answers),
            "digests": sorted({digest for answer in answers for digest in answer["digests"]}),
            "bytes": sum(answer["bytes"] for answer in answers),
            **{
                name: max(answer[name] for answer in answers)
                for name in ("slots_total", "slots_used", "requests")
            },
        }

    async def load(
        self, name: str, folder: str, *, digest: str | None = None, replace: bool = False
    ) -> tuple[ProbeMetadata, bool]:
        """Load a probe folder from the operator's directories under a name.

        Args:
            name: What requests will call the probe.
            folder: The folder's name.
            digest: What the folder must hold, if given.
            replace: Whether the name may be in use; requests in flight finish with the probe they began with.

        Returns:
            The probe's metadata, and whether it replaced one.

        Raises:
            LifecycleError: If the probe cannot be loaded.
        """
        try:
            metadata, replaced = await self._to_the_end(self._load(name, folder, digest, replace))
        except LifecycleError as error:
            metrics.probe_change("load", _OUTCOMES.get(error.status, "failed"))
            raise
        metrics.probe_change("replace" if replaced else "load", "ok")
        events.emit(
            "probe_loaded", name=name, digest=metadata.digest, family=metadata.family, replaced=replaced
        )
        return metadata, replaced

    async def retire(self, name: str) -> tuple[str, str]:
        """Remove a probe's name.

        Args:
            name: The probe's.

        Returns:
            Its digest, and "retired", or "retiring" while requests still need it.

        Raises:
            LifecycleError: If there is no such probe, or a preset needs it.
        """
        try:
            digest, state = await self._to_the_end(self._retire(name))
        except LifecycleError as error:
            metrics.probe_change("retire", _OUTCOMES.get(error.status, "failed"))
            raise
        metrics.probe_change("retire", "ok")
        events.emit("probe_retired", name=name, digest=digest, state=state)
        return digest, state

    async def put_preset(self, name: str, spec: Mapping[str, Any]) -> bool:
        """Create or replace a preset.

        Args:
            name: The preset's.
            spec: In plain JSON types.

        Returns:
            Whether the name is new.

        Raises:
            LifecycleError: If the name is not allowed, or this engine cannot run the spec.
        """
        created = await self._to_the_end(self._put_preset(name, spec))
        events.emit("preset_changed", name=name, action="created" if created else "replaced")
        return created

    async def delete_preset(self, name: str) -> None:
        """Delete a preset. Raises LifecycleError if there is none, or it is the engine's default."""
        await self._to_the_end(self._delete_preset(name))
        events.emit("preset_changed", name=name, action="deleted")

    async def _load(
        self, name: str, folder: str, digest: str | None, replace: bool
    ) -> tuple[ProbeMetadata, bool]:
        config = self._live.config
        _check_name(name)
        path = await asyncio.to_thread(find_folder, folder, config.probe_dirs)
        metadata = await asyncio.to_thread(self._checked, name, folder, path, digest)
        async with self._changing() as catalog:
            replaced = name in catalog.probes
            if replaced and not replace:
                raise LifecycleError(
                    409, "name", f"probe {name!r} is already loaded; pass replace: true to replace it"
                )
            if not replaced and len(catalog.probes) >= config.max_probes:
                raise LifecycleError(
                    409, "name", f"max_probes={config.max_probes} probes are loaded; retire one first"
                )
            following = catalog.with_probe(name, metadata)
            self._check_presets(following)
            await self._bring(path, folder, metadata.digest, catalog, following)
        return metadata, replaced

    async def _bring(
        self, path: Path, folder: str, digest: str, catalog: Catalog, following: Catalog
    ) -> None:
        """Load a probe into every worker and publish the catalog that names it, or neither."""
        try:
            answers = await ask(self._engine_core, LOAD, str(path), digest)
            if refused := [answer for answer in answers if not answer["ok"]]:
                raise _refusal(catalog, refused[0], path, folder)
            await write(self._live.store, following)
        except LifecycleError:
            if digest not in catalog.digests:
                self._retirement.orphans.add(digest)
            raise

    def _checked(self, name: str, folder: str, path: Path, digest: str | None) -> ProbeMetadata:
        """The metadata of a probe that fits this engine. Reads the folder; messages name no path."""
        try:
            probe = Probe.load(path)
            check_fit(name, probe, self._live.config, self._identity)
        except ProbeError as error:
            raise LifecycleError(400, "folder", _without_path(str(error), path, folder)) from None
        metadata = probe.metadata
        if digest is not None and digest != metadata.digest:
            raise LifecycleError(
                400, "digest", f"digest: expected {digest[:80]!r}, folder {folder!r} has {metadata.digest!r}"
            )
        own, opened = metadata.layers or (metadata.layer,), self.registry.open_layers
        if set(own).isdisjoint(opened):
            raise LifecycleError(
                400, "folder", f"probe {name!r} is for layer {listing(own)}; open: {listing(opened, 200)}"
            )
        return metadata

    async def _retire(self, name: str) -> tuple[str, str]:
        async with self._changing() as catalog:
            if name not in catalog.probes:
                there_are = choices(name, catalog.probes)
                raise LifecycleError(404, "name", f"no probe named {name[:80]!r}; loaded: {there_are}")
            digest = catalog.probes[name].digest
            following = catalog.without_probe(name)
            self._check_presets(following)
            await write(self._live.store, following)
        with contextlib.suppress(LifecycleError):  # if not now, then later
            await self._retirement.collect()
        return digest, "retiring" if digest in self._live.store.read().retiring else "retired"

    async def _put_preset(self, name: str, spec: Mapping[str, Any]) -> bool:
        _check_name(name)
        try:
            check_preset(name, spec)
            async with self._changing() as catalog:
                created = name not in catalog.presets
                if created and len(catalog.presets) >= self._live.config.max_presets:
                    raise LifecycleError(
                        409,
                        "name",
                        f"max_presets={self._live.config.max_presets} presets exist; delete one first",
                    )
                self.registry.admit(spec)
                await write(self._live.store, catalog.with_presets({**catalog.presets, name: dict(spec)}))
        except SpecError as error:
            raise LifecycleError(400, error.field, str(error)) from None
        return created

    async def _delete_preset(self, name: str) -> None:
        async with self._changing() as catalog:
            if name not in catalog.presets:
                there_are = choices(name, catalog.presets)
                raise LifecycleError(404, "name", f"no preset named {name[:80]!r}; available: {there_are}")
            if name == self._live.config.default:
                raise LifecycleError(409, "name", f"preset {name!r} is this server's default")
            rest = {other: spec for other, spec in catalog.presets.items() if other != name}
            await write(self._live.store, catalog.with_presets(rest))

    def _changing(self) -> Any:
        if self.refuses_changes:
            raise LifecycleError(403, "ksteer", f"this server allows no changes: {self.refuses_changes}")
        return changing(self._live.store)

    def _check_presets(self, catalog: Catalog) -> None:
        """Every preset must still run with the new catalog."""
        try:
            self._live.registry_of(catalog)
        except ConfigError as error:
            raise LifecycleError(409, "ksteer", f"a preset would no longer run: {error}") from None

    async def _to_the_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        return await asyncio.shield(self._keep(work))

    def _keep(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _check_name(name: str) -> None:
    try:
        check_name(name, "name")
    except SpecError as error:
        raise LifecycleError(400, "name", str(error).removeprefix("ksteer.")) from None


def _without_path(message: str, path: Path, folder: str) -> str:
    """Show the folder as the client named it; where it lies is not for clients to know."""
    return message.replace(str(path), repr(folder))


def _refusal(catalog: Catalog, answer: Mapping[str, Any], path: Path, folder: str) -> LifecycleError:
    message = _without_path(str(answer.get("message", "a worker could not load it")), path, folder)
    if answer["why"] == "failed":
        return LifecycleError(500, "folder", message)
    if answer["why"] != "full":
        return LifecycleError(400, "folder", message)
    if catalog.retiring:
        message += "; some are held by retiring probes that requests still use"
        return LifecycleError(503, "folder", message, RETRY_AFTER)
    return LifecycleError(
        409, "folder", f"{message}; retire a probe, or start the server with a larger max_slots"
    )
