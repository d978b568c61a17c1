"""The middleware that refuses specs on routes that would lose them, without a server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from ksteer_vllm.server.endpoints.plugin import with_endpoints
from ksteer_vllm.server.gate import STEERED_ROUTES, SpecGate

SPEC = {"ksteer": {"probe": "tones"}}


class Echo:
    """An application that answers with the body it read, and remembers the messages it received."""

    def __init__(self) -> None:
        self.received: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        if scope["type"] == "lifespan":
            return
        while True:
            message = await receive()
            self.received.append(message)
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def call(method: str, path: str, *, root_path: str = "", **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=SpecGate(Echo()), root_path=root_path)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "QUERY"])
@pytest.mark.parametrize(
    "path", ["/v1/messages", "/tokenize", "/v1/completions/render", "/", "/v1/completionsx"]
)
def test_a_spec_is_refused(method: str, path: str) -> None:
    response = call(method, path, json=SPEC)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"].startswith(f"ksteer: {path} does not support steering")
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", "ksteer", 400)


@pytest.mark.parametrize("path", ["/v1/messages", *STEERED_ROUTES])
@pytest.mark.parametrize("content", [b"", b"ksteer", b'{"ksteer": null}', b'{"ksteer": ', b"\x00" * 100_000])
def test_other_bodies_arrive_unchanged(path: str, content: bytes) -> None:
    response = call("POST", path, content=content)
    assert (response.status_code, response.content) == (200, content)


@pytest.mark.parametrize("path", [*STEERED_ROUTES, *(f"{route}/" for route in STEERED_ROUTES)])
def test_steered_routes_get_their_spec(path: str) -> None:
    assert call("POST", path, json=SPEC).json() == SPEC


def test_a_root_path_is_no_part_of_the_route() -> None:
    assert call("POST", "/api/v1/completions", root_path="/api", json=SPEC).json() == SPEC
    refused = call("POST", "/api/v1/messages", root_path="/api", json=SPEC)
    assert refused.json()["error"]["message"].startswith("ksteer: /v1/messages ")


def test_requests_without_a_body_pass() -> None:
    assert call("GET", "/v1/models").status_code == 200


@pytest.mark.parametrize("field", ["ksteer", "vllm_xargs"])
def test_forms(field: str) -> None:
    pytest.importorskip("starlette")
    value = json.dumps(SPEC)
    for files in ({"file": ("a.wav", b"\x00\xff" * 50_000)}, None):
        refused = call("POST", "/v1/audio/transcriptions", data={"model": "m", field: value}, files=files)
        assert refused.status_code == 400
        passed = call("POST", "/v1/audio/transcriptions", data={"prompt": value}, files=files)
        assert passed.status_code == 200


def test_a_malformed_form_is_the_routes_own_error() -> None:
    content = b'--x\r\nContent-Disposition: form-data; name="ksteer"'
    headers = {"content-type": "multipart/form-data; boundary=y"}
    assert call("POST", "/v1/audio/transcriptions", content=content, headers=headers).content == content


def messages_through(scope: dict[str, Any], incoming: list[dict[str, Any]]) -> tuple[Echo, list[Any]]:
    """What the application received and what was sent when these messages arrive."""
    app, sent, waiting = Echo(), [], iter(incoming)

    async def receive() -> Any:
        return next(waiting)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(SpecGate(app)(scope, receive, send))
    return app, sent


HTTP = {"type": "http", "method": "POST", "path": "/v1/messages", "headers": []}


def test_a_spec_across_chunks_is_found() -> None:
    text = json.dumps(SPEC).encode()
    chunks = [
        {"type": "http.request", "body": text[i : i + 3], "more_body": True} for i in range(0, len(text), 3)
    ]
    app, sent = messages_through(HTTP, [*chunks, {"type": "http.request", "body": b"", "more_body": False}])
    assert app.received == []
    assert sent[0]["status"] == 400


def test_chunks_are_passed_on_one_by_one_and_then_the_rest() -> None:
    incoming = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
        {"type": "http.disconnect"},
    ]
    app, sent = messages_through(HTTP, incoming)
    assert app.received == incoming[:2]
    assert sent[1]["body"] == b"abc"


def test_a_client_that_leaves_is_passed_on() -> None:
    incoming = [{"type": "http.request", "body": b'{"ks', "more_body": True}, {"type": "http.disconnect"}]
    app, _ = messages_through(HTTP, incoming)
    assert app.received == incoming


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_websocket_messages_are_refused_by_closing(kind: str) -> None:
    text = json.dumps({"type": "session.update", "session": SPEC})
    message = {"type": "websocket.receive", kind: text if kind == "text" else text.encode()}
    path = "/v1/realtime/" + "ö" * 200
    app, sent = messages_through({"type": "websocket", "path": path}, [message])
    assert app.received == [{"type": "websocket.disconnect", "code": 1008}]
    assert (sent[0]["type"], sent[0]["code"]) == ("websocket.close", 1008)
    assert sent[0]["reason"].startswith("ksteer: /v1/realtime/")
    assert len(sent[0]["reason"].encode()) <= 123


@pytest.mark.parametrize(
    "message", [{"text": '{"prompt": "ksteer"}'}, {"bytes": b"\x00ksteer"}, {"text": None}]
)
def test_other_websocket_messages_pass(message: dict[str, Any]) -> None:
    incoming = {"type": "websocket.receive", **message}
    app, _ = messages_through({"type": "websocket", "path": "/v1/realtime"}, [incoming])
    assert app.received == [incoming]


def test_lifespan_is_left_alone() -> None:
    app, sent = messages_through({"type": "lifespan"}, [])
    assert (app.received, sent) == ([], [])


def test_the_gate_is_put_around_an_application_as_it_is_built() -> None:
    class Application:
        def __init__(self) -> None:
            self.middleware: list[Any] = []

        def add_middleware(self, kind: Any) -> None:
            self.middleware.append(kind)

    app = Application()
    assert with_endpoints(lambda app, tasks: ("attached", tasks))(app, ("generate",)) == (
        "attached",
        ("generate",),
    )
    assert app.middleware == [SpecGate]
