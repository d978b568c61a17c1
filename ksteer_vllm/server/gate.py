"""Routes that would lose a spec refuse it: a request that asks for steering never runs unsteered."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ksteer_vllm.spec import EXTRA_ARGS_KEY

__all__ = ["STEERED_ROUTES", "SpecGate", "with_gate"]

STEERED_ROUTES = ("/v1/completions", "/v1/chat/completions")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Where a spec can stand in a request body: at the top, or in one of these objects.
_CARRIERS = ("vllm_xargs", "extra_args", "extra_body", "sampling_params", "session")


class SpecGate:
    """ASGI middleware: HTTP 400 for a spec on any route but completions and chat completions."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        root = str(scope.get("root_path", ""))
        route = path.removeprefix(root).rstrip("/")
        if scope["type"] == "websocket":
            await self.app(scope, _refusing_messages(receive, send, route), send)
            return
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or route in STEERED_ROUTES:
            await self.app(scope, receive, send)
            return
        messages, body = await _read_body(receive)
        if body_asks_for_steering(body):
            await _refuse(send, route)
            return
        await self.app(scope, _replay(messages, receive), send)


def body_asks_for_steering(body: bytes) -> bool:
    """Whether a request body carries a spec in either spelling. Text that merely mentions the word does not."""
    word = EXTRA_ARGS_KEY.encode()
    if word not in body and b"\\u" not in body:  # \u: a JSON key can be written with escapes
        return False
    try:
        return _carries_spec(json.loads(body))
    except (ValueError, RecursionError):
        return b'name="' + word + b'"' in body  # multipart form data


def _carries_spec(value: Any) -> bool:
    if isinstance(value, list):  # a batch of requests
        return any(_carries_spec(item) for item in value)
    if not isinstance(value, dict):
        return False
    if value.get(EXTRA_ARGS_KEY) is not None:
        return True
    return any(_carries_spec(value[name]) for name in (*_CARRIERS, "body", "requests") if name in value)


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


def _refusing_messages(receive: Receive, send: Send, route: str) -> Receive:
    async def checked() -> Message:
        message = await receive()
        text = message.get("text") or message.get("bytes") or b""
        if body_asks_for_steering(text.encode() if isinstance(text, str) else text):
            await send({"type": "websocket.close", "code": 1008, "reason": _message(route)})
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
