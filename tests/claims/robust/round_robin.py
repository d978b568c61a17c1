"""A proxy on loopback that gives each request to the next server in turn, as a Service does."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

_OF_THE_CONNECTION = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}


class RoundRobin(ThreadingHTTPServer):
    """urls: of the servers behind it. `served_by` lists whom each request was given to."""

    def __init__(self, *urls: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._turns = itertools.cycle(urls)
        self._guard = threading.Lock()
        self.served_by: list[str] = []
        self.client = httpx.Client(timeout=60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next(self) -> str:
        with self._guard:
            self.served_by.append(next(self._turns))
            return self.served_by[-1]


class _Handler(BaseHTTPRequestHandler):
    server: RoundRobin

    def log_message(self, *_: Any) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {n: v for n, v in self.headers.items() if n.lower() not in _OF_THE_CONNECTION}
        url = self.server.next() + self.path
        answer = self.server.client.request(self.command, url, content=body, headers=headers)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in _OF_THE_CONNECTION:
                self.send_header(name, value)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = do_DELETE = _pass_on


@contextmanager
def round_robin(*urls: str) -> Iterator[RoundRobin]:
    """A running proxy."""
    proxy = RoundRobin(*urls)
    threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        proxy.client.close()
