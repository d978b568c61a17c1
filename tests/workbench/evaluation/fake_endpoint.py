"""A local OpenAI-compatible endpoint that answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeEndpoint:
    """answer: request body -> the message's content, or (HTTP status, body). Keeps the bodies it got."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any], models: tuple[str, ...] = ("judge",)) -> None:
        self.answer, self.models = answer, models
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.delay = 0.0
        self.lock = threading.Lock()
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[FakeEndpoint]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(fake: FakeEndpoint) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                models = [
                    {"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in fake.models
                ]
                self._send(200, {"object": "list", "data": models})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.bodies.append(body)
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                time.sleep(fake.delay)
                found = fake.answer(body)
                with fake.lock:
                    fake.at_once -= 1
                if isinstance(found, tuple):
                    self._send(*found)
                    return
                choice = {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": found},
                }
                self._send(200, {"id": "1", "object": "chat.completion", "created": 0, "choices": [choice]})

            def _send(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
