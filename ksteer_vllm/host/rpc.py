"""Worker methods for `collective_rpc`: counters and captured activations."""

from __future__ import annotations

from typing import Any

from ksteer_vllm.host.loading import worker_state

__all__ = ["install"]


def ksteer_counters(worker: Any) -> dict[str, int]:
    """Host time and calls since start-up, see `ksteer_vllm.batch.Counters`."""
    return worker_state(worker).counters.snapshot()


def ksteer_take_captures(worker: Any) -> bytes:
    """Everything captured since the last call, as safetensors bytes."""
    capture = worker_state(worker).capture
    return b"" if capture is None else capture.take()


def install(worker: Any) -> None:
    """Make the methods callable by name on this worker."""
    worker.ksteer_counters = lambda: ksteer_counters(worker)
    worker.ksteer_take_captures = lambda: ksteer_take_captures(worker)
