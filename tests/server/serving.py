"""A real `vllm serve` as a child process: started on a free port, waited for, and taken down with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

START_LIMIT = 240.0
STOP_LIMIT = 20.0

SMALL = (
    "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16", "--enforce-eager",
    "--gpu-memory-utilization", "0.2",
)  # fmt: skip


class Server:
    """One running server. `log` is everything it and its children wrote."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._log_file = log_file

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
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
        """End the whole process group: politely, then for certain."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_LIMIT)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a server process: one thread, a small KV cache, no settings of other tests."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_", "TRITON_"))
    }  # fmt: skip
    return {**inherited, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", **(extra or {})}


def serve_command(model: Path, *arguments: str) -> list[str]:
    """`vllm serve MODEL` with the interpreter that runs the tests."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *arguments]


@contextlib.contextmanager
def serve(
    model: Path, log_file: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server on a free port, not waited for; stopped at the end of the block."""
    port = free_port()
    command = serve_command(model, "--port", str(port), "--served-model-name", "tiny", *SMALL, *arguments)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environment(environment),
            start_new_session=True,
        )
    server = Server(process, port, log_file)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
