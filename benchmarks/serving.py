"""`vllm serve` and `vllm bench serve` as child processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

START_LIMIT = 900.0
STOP_LIMIT = 20.0
VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")


def environment() -> dict[str, str]:
    """The children's environment: offline and, on a CPU, free to use any core, as two servers share them."""
    return {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


@contextlib.contextmanager
def serve(model: Path, log: Path, *arguments: str) -> Iterator[str]:
    """The address of a healthy server; it is stopped, with its children, at the end of the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [*VLLM, "serve", str(model), "--served-model-name", "bench", "--port", str(port), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_healthy(process, address, log)
        yield address
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT)


def wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"vllm serve did not start:\n{log.read_text(errors='replace')[-6000:]}")
        time.sleep(0.5)


def bench(
    address: str, model: Path, folder: Path, arguments: Sequence[str], body: dict[str, Any]
) -> dict[str, Any]:
    """One `vllm bench serve` on the random dataset; returns its result, per-request figures included."""
    command = [
        *VLLM, "bench", "serve", "--base-url", address, "--model", "bench", "--tokenizer", str(model),
        "--dataset-name", "random", "--ignore-eos", "--temperature", "0", "--disable-tqdm",
        "--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "result.json",
        *(["--extra-body", json.dumps(body)] if body else []), *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise RuntimeError(f"vllm bench serve failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} requests failed: {[e for e in result['errors'] if e][:1]}")
    return result
