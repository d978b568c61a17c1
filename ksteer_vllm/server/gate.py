"""Routes that would lose a spec refuse it: a request that asks for steering never runs unsteered."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from ksteer_vllm.admission.refusals import count_refusal
from ksteer_vllm.server import sagemaker
from ksteer_vllm.server.bodies import (
    form_asks_for_steering,
    json_asks_for_steering,
    json_opts_out_beside_a_preset,
)
from ksteer_vllm.spec.presets import NO_STEERING
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["STEERED_ROUTES", "SpecGate", "refusal"]

STEERED_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
_OWN_ROUTES = "/v1/ksteer"
_GENERATE_NOTHING = ("/tokenize", "/detokenize")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODILESS_METHODS = ("GET", "HEAD", "OPTIONS")
_FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
_MAX_CLOSE_REASON = 123  # bytes, RFC 6455


class SpecGate:
    """ASGI middleware: HTTP 400 for a spec on any route but STEERED_ROUTES.

    An opt-out that a route would lose is refused too, if the engine steers by default or the model names a
    preset.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        route = str(scope["path"]).removeprefix(str(scope.get("root_path", ""))).rstrip("/")
        generates = route not in _GENERATE_NOTHING
        opt_outs = generates and _steers_by_default(scope)
        if kind == "websocket":
            await self.app(scope, _refusing_messages(receive, send, route, opt_outs), send)
            return
        own = f"{route}/".startswith(f"{_OWN_ROUTES}/")
        if scope["method"] in _BODILESS_METHODS or route in STEERED_ROUTES or own:
            await self.app(scope, receive, send)
            return
        messages, body = await _read_body(receive)
        lost = await _asks_for_steering(scope, messages, body, opt_outs)
        if lost or (generates and json_opts_out_beside_a_preset(body)):
            await _refuse(send, refusal(route))
            return
        if route == sagemaker.ROUTE:
            dropped = sagemaker.dropped_preset(scope.get("headers", ()), body, _presets(scope))
            if dropped is not None:
                await _refuse(send, dropped)
                return
        await self.app(scope, _replay(messages, receive), send)


def _registry(scope: Scope) -> Any:
    """The current registry of the engine this application serves; None without steering."""
    service = getattr(getattr(scope.get("app"), "state", None), "ksteer", None)
    return None if service is None else service.registry


def _steers_by_default(scope: Scope) -> bool:
    registry = _registry(scope)
    return registry is not None and registry.default is not None


def _presets(scope: Scope) -> Collection[str]:
    registry = _registry(scope)
    if registry is None:
        return ()
    return (*registry.presets, NO_STEERING) if registry.default is not None else registry.presets


async def _asks_for_steering(scope: Scope, messages: list[Message], body: bytes, opt_outs: bool) -> bool:
    if _content_type(scope) not in _FORM_TYPES:
        return json_asks_for_steering(body, opt_outs=opt_outs)
    from starlette.requests import Request  # vLLM's own dependency; parses the form as the route will

    try:
        async with Request(scope, _replay(messages, _disconnected)).form() as form:
            return form_asks_for_steering(form.multi_items(), opt_outs=opt_outs)
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


def _refusing_messages(receive: Receive, send: Send, route: str, opt_outs: bool) -> Receive:
    async def checked() -> Message:
        message = await receive()
        text = message.get("text") or message.get("bytes") or b""
        if json_asks_for_steering(text.encode() if isinstance(text, str) else text, opt_outs=opt_outs):
            reason = refusal(route).encode()[:_MAX_CLOSE_REASON].decode(errors="ignore")
            count_refusal(EXTRA_ARGS_KEY, "route")
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
            return {"type": "websocket.disconnect", "code": 1008}
        return message

    return checked


def refusal(route: str) -> str:
    """The message for a spec on a route that would lose it."""
    *most, last = STEERED_ROUTES
    return (
        f"{EXTRA_ARGS_KEY}: {route or '/'} does not support steering and would lose the spec; "
        f"use {', '.join(most)} or {last}"
    )


async def _refuse(send: Send, message: str) -> None:
    count_refusal(EXTRA_ARGS_KEY, "route")
    error = {"message": message, "type": "BadRequestError", "param": EXTRA_ARGS_KEY, "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
