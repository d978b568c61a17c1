"""vLLM's `EndpointPlugin` with the routes below `/v1/ksteer`, added where steering is enabled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksteer_vllm.config import CONFIG_KEY
from ksteer_vllm.server.flags import read_admin_key
from ksteer_vllm.server.gate import SpecGate
from ksteer_vllm.server.page_routes import attach_page

__all__ = ["SteeringEndpoints", "with_endpoints"]


class SteeringEndpoints:
    """See `vllm.plugins.endpoint_plugins.interface`. One per application."""

    name = "ksteer"
    required_tasks = ("generate",)

    @classmethod
    def wanted(cls, app: Any, supported_tasks: Any) -> bool:
        """Whether this application serves an engine in which steering is enabled."""
        additional = getattr(getattr(getattr(app, "state", None), "args", None), "additional_config", None)
        return CONFIG_KEY in (additional or {}) and "generate" in (supported_tasks or ())

    def attach_router(self, app: Any) -> None:
        """Register the routes, how their errors are answered, and the page."""
        from ksteer_vllm.server.endpoints.errors import add_handlers
        from ksteer_vllm.server.endpoints.routes import router

        app.include_router(router)
        add_handlers(app)
        attach_page(app)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Give the routes their engine. Raises ConfigError if the admin key cannot be read."""
        if engine_client is None:
            return
        from ksteer_vllm.host.lifecycle import ServerLifecycle
        from ksteer_vllm.server.endpoints.prompt_forms import warn_of_other_forms
        from ksteer_vllm.server.endpoints.routes import STATE_KEY
        from ksteer_vllm.server.endpoints.service import Service

        key_file = getattr(args, "ksteer_admin_key_file", None)
        folder = getattr(args, "ksteer_shared_folder", None)
        if getattr(engine_client.engine_core, "client_count", 1) == 1:
            folder = None
        lifecycle = ServerLifecycle(engine_client, None if folder is None else Path(folder))
        lifecycle.start()
        warn_of_other_forms(lifecycle.registry.probes, engine_client.tokenizer, args)
        setattr(
            state,
            STATE_KEY,
            Service(engine_client, state, lifecycle, read_admin_key(key_file) if key_file else None),
        )


def with_endpoints(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `attach_endpoint_plugins(app, tasks)`, which every server calls once while building its app.

    Every app gets the gate. Where steering is enabled it gets our endpoint plugin too, and vLLM then
    calls its `init_state`.
    """

    def attach_endpoint_plugins(app: Any, supported_tasks: Any, *args: Any, **kwargs: Any) -> Any:
        app.add_middleware(SpecGate)
        attached = original(app, supported_tasks, *args, **kwargs)
        if SteeringEndpoints.wanted(app, supported_tasks):
            plugin = SteeringEndpoints()
            plugin.attach_router(app)
            app.state.endpoint_plugins = [*getattr(app.state, "endpoint_plugins", ()), plugin]
        return attached

    return attach_endpoint_plugins
