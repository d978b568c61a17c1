"""Routes that would lose a spec refuse it: a request that asks for steering never runs unsteered."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ksteer_vllm.server.bodies import form_asks_for_steering, json_asks_for_steering
from ksteer_vllm.spec import EXTRA_ARGS_KEY

__all__ = ["STEERED_ROUTES", "SpecGate", "with_gate"]

STEERED_ROUTES = ("/v1/completions", "/v1/chat/completions")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODILESS_METHODS = ("GET", "HEAD", "OPTIONS")
_FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
_MAX_CLOSE_REASON = 123  # bytes, RFC 6455


class SpecGate:
    """ASGI middleware: HTTP 400 for a spec on any route but completions and chat completions."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        route = str(scope["path"]).removeprefix(str(scope.get("root_path", ""))).rstrip("/")
        if kind == "websocket":
            await self.app(scope, _refusing_messages(receive, send, route), send)
            return
        if scope["method"] in _BODILESS_METHODS or route in STEERED_ROUTES:
            await self.app(scope, receive, send)
            return
        messages, body = await _read_body(receive)
        if await _asks_for_steering(scope, messages, body):
            await _refuse(send, route)
            return
        await self.app(scope, _replay(messages, receive), send)


async def _asks_for_steering(scope: Scope, messages: list[Message], body: bytes) -> bool:
    if _content_type(scope) not in _FORM_TYPES:
        return json_asks_for_steering(body)
    from starlette.requests import Request  # vLLM's own dependency; parses the form as the route will

    try:
        async with Request(scope, _replay(messages, _disconnected)).form() as form:
            return form_asks_for_steering(form.multi_items())
    except Exception:  # a malformed form, in whatever way: the route answers that itself
        return False


def _content_type(scope: Scope) -> str:
    for name, value in scope.get("headers", ()):
        if name.lower() == b"content-type":
            return str(value, "latin-1").partition(";")[0].strip().lower()
    return ""


async def _read_body(receive: Receive) -> tuple[list[Message], bytes]:
    messages = []
    chunks = []
    while True:
        message = await receive()
        messages.append(message)
        chunks.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return messages, b"".join(chunks)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def replayed() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replayed


async def _disconnected() -> Message:
    return {"type": "http.disconnect"}


def _refusing_messages(receive: Receive, send: Send, route: str) -> Receive:
    async def checked() -> Message:
        message = await receive()
        text = message.get("text") or message.get("bytes") or b""
        if json_asks_for_steering(text.encode() if isinstance(text, str) else text):
            reason = _message(route).encode()[:_MAX_CLOSE_REASON].decode(errors="ignore")
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
            return {"type": "websocket.disconnect", "code": 1008}
        return message

    return checked


def _message(route: str) -> str:
    return (
        f"{EXTRA_ARGS_KEY}: {route or '/'} does not support steering and would lose the spec; "
        f"use {' or '.join(STEERED_ROUTES)}"
    )


async def _refuse(send: Send, route: str) -> None:
    error = {"message": _message(route), "type": "BadRequestError", "param": EXTRA_ARGS_KEY, "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def with_gate(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `attach_endpoint_plugins(app, tasks)`, which every server calls once while building its app."""

    def attach_endpoint_plugins(app: Any, *args: Any, **kwargs: Any) -> Any:
        app.add_middleware(SpecGate)
        return original(app, *args, **kwargs)

    return attach_endpoint_plugins
