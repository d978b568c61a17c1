"""The page at `/ksteer/`: the files of `ksteer_vllm/server/page/`, and nothing else.

It is outside `/v1`, so it loads without an API key; its own requests go to `/v1` with the key the user types.
Its URLs are relative, so it works below `--root-path` and behind a proxy that adds a prefix.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

__all__ = ["HEADERS", "attach_page", "page_files"]

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every response: no inline script or style, nothing from other origins, no framing."""

_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""File suffix -> content type; files with other suffixes are not served."""


@cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """Name -> contents and content type of every file of the page."""
    files = {}
    for entry in resources.files("ksteer_vllm.server").joinpath("page").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in _TYPES:
            files[entry.name] = (entry.read_bytes(), _TYPES[suffix])
    return files


def attach_page(app: Any) -> None:
    """Add `/ksteer/` to a Starlette app, unless it was started with `--no-ksteer-page`."""
    if getattr(getattr(app.state, "args", None), "ksteer_page", None) is False:
        return
    from starlette.requests import Request  # vLLM's own dependency
    from starlette.responses import Response

    files = page_files()

    async def redirect(request: Request) -> Response:
        # Relative to this address, whatever prefix a proxy has put before it.
        return Response(status_code=307, headers={**HEADERS, "Location": "ksteer/"})

    async def serve(request: Request) -> Response:
        found = files.get(request.path_params.get("name", _INDEX))
        if found is None:
            return Response("Not Found", 404, HEADERS, "text/plain")
        content, content_type = found
        return Response(content, headers=HEADERS, media_type=content_type)

    app.add_route("/ksteer", redirect, methods=["GET"], include_in_schema=False)
    app.add_route("/ksteer/", serve, methods=["GET"], include_in_schema=False)
    app.add_route("/ksteer/{name}", serve, methods=["GET"], include_in_schema=False)
