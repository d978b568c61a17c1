"""The routes. `/openapi.json` describes each with every status it may return."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException

from ksteer_vllm.errors import LifecycleError
from ksteer_vllm.server.endpoints import schemas
from ksteer_vllm.server.endpoints.errors import documented
from ksteer_vllm.server.endpoints.service import Service
from ksteer_vllm.spec.presets import check_name

__all__ = ["ADMIN_HEADER", "PREFIX", "STATE_KEY", "router"]

PREFIX = "/v1/ksteer"
STATE_KEY = "ksteer"
"""Attribute of the application's state: the `Service`."""
ADMIN_HEADER = "X-KSteer-Admin-Key"
_LEAST_LIMIT = 4096

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class LimitedRoute(APIRoute):
    """A route that reads no more of a body than max_spec_bytes, or 4096 bytes if that is more."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_limited(request: Request) -> Response:
            limit = max(_LEAST_LIMIT, _service(request).registry.config.max_spec_bytes)
            request._body = await _read(request, limit)  # where Starlette keeps a body that was read
            try:
                return await handle(request)
            except HTTPException as error:  # FastAPI's own, for a body that is not text
                raise LifecycleError(error.status_code, "body", str(error.detail)) from None

        return handle_limited


async def _read(request: Request, limit: int) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise LifecycleError(413, "body", f"at most {limit} bytes (max_spec_bytes)")
    return body


def _service(request: Request) -> Service:
    service: Service | None = getattr(request.app.state, STATE_KEY, None)
    if service is None:
        raise LifecycleError(503, "ksteer", "the engine is not ready", 1)
    return service


def _may_change(
    service: Annotated[Service, Depends(_service)],
    key: Annotated[
        str | None,
        Depends(
            APIKeyHeader(
                name=ADMIN_HEADER,
                auto_error=False,
                description="Required if the server was started with --ksteer-admin-key-file.",
            )
        ),
    ],
) -> Service:
    service.check_admin(key)
    return service


Reading = Annotated[Service, Depends(_service)]
Changing = Annotated[Service, Depends(_may_change)]
Name = Annotated[str, Path(max_length=256)]

_LOADED = {
    **documented(400, 403, 404, 409, 413, 503),
    200: {"model": schemas.ProbeCard, "description": "The probe replaced another of the same name."},
}

router = APIRouter(
    prefix=PREFIX,
    tags=["ksteer"],
    route_class=LimitedRoute,
    dependencies=[Depends(HTTPBearer(auto_error=False, description="vLLM's --api-key."))],
)


@router.get("", responses=documented(503))
async def describe(service: Reading) -> schemas.Status:
    """Show the versions, model, open layers, limits, probes, presets and methods of this server."""
    return await service.status()


@router.get("/probes", responses=documented())
async def list_probes(service: Reading) -> schemas.ProbeList:
    """List the loaded probes."""
    return service.probes()


@router.post("/probes", status_code=201, responses=_LOADED)
async def load_probe(body: schemas.ProbeLoad, service: Changing, response: Response) -> schemas.ProbeCard:
    """Load a folder from the operator's directories under a name: into every worker, or not at all."""
    return await _load(service, body.name, body, response)


@router.get("/probes/{name}", responses=documented(404))
async def show_probe(name: Name, service: Reading) -> schemas.ProbeCard:
    """Show one loaded probe."""
    return service.probe(name)


@router.post("/probes/{name}", status_code=201, responses=_LOADED)
async def load_probe_as(
    name: Name, body: schemas.ProbeFolder, service: Changing, response: Response
) -> schemas.ProbeCard:
    """Like `POST /v1/ksteer/probes`, with the name in the path."""
    return await _load(service, name, body, response)


@router.delete("/probes/{name}", responses=documented(400, 403, 404, 409, 503))
async def retire_probe(name: Name, service: Changing) -> schemas.ProbeRetired:
    """Remove a probe's name. Requests in flight finish with the probe; then it is unloaded."""
    digest, state = await service.lifecycle.retire(name)
    return schemas.ProbeRetired.model_validate({"name": name, "digest": digest, "state": state})


@router.get("/presets", responses=documented())
async def list_presets(service: Reading) -> schemas.PresetList:
    """List the presets."""
    return service.presets()


@router.get("/presets/{name}", responses=documented(404))
async def show_preset(name: Name, service: Reading) -> schemas.Preset:
    """Show one preset."""
    return service.preset(name)


@router.put(
    "/presets/{name}",
    status_code=200,
    responses={
        **documented(400, 403, 409, 413, 503),
        201: {"model": schemas.Preset, "description": "The preset was created."},
    },
)
async def put_preset(name: Name, spec: schemas.Spec, service: Changing, response: Response) -> schemas.Preset:
    """Create or replace a preset. Refused unless this server can run the spec."""
    check_name(name, "name")
    if await service.lifecycle.put_preset(name, spec.root):
        response.status_code = 201
    return service.preset(name)


@router.delete("/presets/{name}", responses=documented(403, 404, 409, 503))
async def delete_preset(name: Name, service: Changing) -> schemas.PresetDeleted:
    """Delete a preset. The engine's default preset cannot be deleted."""
    await service.lifecycle.delete_preset(name)
    return schemas.PresetDeleted(name=name)


async def _load(
    service: Service, name: str, body: schemas.ProbeFolder, response: Response
) -> schemas.ProbeCard:
    metadata, replaced = await service.lifecycle.load(
        name, body.folder, digest=body.digest, replace=body.replace
    )
    if replaced:
        response.status_code = 200
    return schemas.ProbeCard.of(name, metadata)
