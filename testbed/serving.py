"""A real `vllm serve` as a child process: started on a free port, waited for, ended with its children."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

MODEL_NAME = "tiny"
START_LIMIT = 900.0
STOP_LIMIT = 20.0

SMALL = (
    "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16", "--enforce-eager",
    "--block-size", "32", "--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(2 << 20),
)  # fmt: skip
"""A tiny engine: 64 cache blocks of 32 tokens, so that blocks are soon used again by other requests."""

_running: list[Server] = []
_ports = itertools.count(
    20_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
)


def stop_all() -> None:
    """Stop every server that tests have left running: a session's fixtures end with it, and a dozen servers
    do not fit into memory."""
    for server in list(_running):
        server.stop()


class Server:
    """One running server. `log` is everything it and its children wrote."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._client = httpx.Client(timeout=5)  # a new one first reads certificates: 23 ms of a core
        self._log_file = log_file

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def is_healthy(self) -> bool:
        try:
            return self._client.get(f"{self.url}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not self.is_healthy():
            if self.process.poll() is not None:
                raise RuntimeError(f"vllm serve ended with {self.process.returncode}:\n{self.log[-6000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"vllm serve was not healthy in {START_LIMIT:.0f} s:\n{self.log[-6000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the whole process group, once: politely, then for certain."""
        if self not in _running:
            return
        _running.remove(self)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_LIMIT)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a vLLM command: one thread, free to run on any core, no settings of other tests."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "TRITON_"))
    }
    settings = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # seconds, longer than any client leaves a connection alone
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {**inherited, **settings, **(extra or {})}


def vllm_command(*arguments: str) -> list[str]:
    """The `vllm` command with the interpreter that runs the tests, see `testbed.vllm_command`."""
    return [sys.executable, str(Path(__file__).with_name("vllm_command.py")), *arguments]


@contextlib.contextmanager
def serve(
    model: Path,
    log_file: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    command: tuple[str, ...] = ("serve",),
) -> Iterator[Server]:
    """A server on a free port, not waited for; stopped at the end of the block."""
    port = free_port()
    own = ("--port", str(port), "--served-model-name", MODEL_NAME)
    engine = SMALL if command == ("serve",) else ()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            vllm_command(*command, str(model), *own, *engine, *arguments),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environment(environment),
            start_new_session=True,
        )
    server = Server(process, port, log_file)
    _running.append(server)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """One that neither the system gives out by itself nor another test process: a server binds it only when
    it has imported vLLM, tens of seconds later."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("ports are counted without end")
