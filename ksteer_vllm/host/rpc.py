"""Worker methods for `collective_rpc`: probes, counters, captured activations and steering reports.

The methods a server calls return errors instead of raising them: on an exception vLLM's executor leaves the
other workers' answers in their queues, and takes them for the answers to the next call.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ksteer_vllm.errors import PoolFullError, ProbeError
from ksteer_vllm.host.attaching import worker_state

__all__ = ["install"]

logger = logging.getLogger("vllm.ksteer")


def ksteer_load(worker: Any, path: str, digest: str) -> dict[str, Any]:
    """Load a probe. {"ok": True}, or why not: "full" (no free slots), "probe" or "failed" (out of
    memory, say), and a message."""
    try:
        worker_state(worker).pool.load(path, digest)
    except PoolFullError as error:
        return {"ok": False, "why": "full", "message": str(error)}
    except ProbeError as error:
        return {"ok": False, "why": "probe", "message": str(error)}
    except Exception as error:
        logger.exception("a probe could not be loaded")
        return {
            "ok": False,
            "why": "failed",
            "message": f"a worker failed to load it: {type(error).__name__}",
        }
    return {"ok": True}


def ksteer_unload(worker: Any, digest: str) -> dict[str, Any]:
    """Drop a probe; the engine core makes sure that no request needs it (`host.engine_core`).

    Reports of the previous step that a device still holds are collected first: the slots' contents tell whose
    labels they are.
    """
    state = worker_state(worker)
    try:
        state.collect_reports()
        state.pool.unload(digest)
    except Exception as error:
        logger.exception("a probe could not be unloaded")
        return {"ok": False, "why": "failed", "message": type(error).__name__}
    return {"ok": True}


def ksteer_resident(worker: Any) -> dict[str, Any]:
    """What the device tables hold."""
    state = worker_state(worker)
    total = state.pool.tables.num_slots
    return {
        "digests": list(state.pool.digests),
        "slots_total": total,
        "slots_used": total - state.pool.num_free,
        "bytes": state.nbytes,
        "requests": state.num_steered,
    }


def ksteer_counters(worker: Any) -> dict[str, int]:
    """CPU time and calls since start-up, see `ksteer_vllm.device.backend.Counters`."""
    return worker_state(worker).snapshot()


def ksteer_metrics(worker: Any) -> dict[str, Any]:
    """`ksteer_counters` and `ksteer_resident`, and whose they are: the data-parallel engine, and the rank in
    its tensor-parallel group."""
    parallel = worker.vllm_config.parallel_config
    return {
        "counters": ksteer_counters(worker),
        "resident": ksteer_resident(worker),
        "engine": int(parallel.data_parallel_index),
        "tensor_rank": int(worker.rank) % int(parallel.tensor_parallel_size),
    }


def ksteer_take_captures(worker: Any, ids: Sequence[str] | None = None) -> bytes:
    """The activations captured and not yet taken, see `ksteer_vllm.device.capture.Capture.take`."""
    capture = worker_state(worker).capture
    return b"" if capture is None else capture.take(None if ids is None else set(ids))


def ksteer_take_reports(
    worker: Any, wanted: Sequence[tuple[str, int]], abandoned: Sequence[str]
) -> list[bytes]:
    """The records of each wanted request (id, number of tokens).

    See `ksteer_vllm.device.report_store.ReportStore.take`. Those of abandoned requests are dropped.
    """
    state = worker_state(worker)
    reports = state.reports
    if reports is None:
        return [b"" for _ in wanted]
    try:
        state.collect_reports()
        for request_id in abandoned:
            reports.take(request_id, 0)
        return [reports.take(request_id, num_tokens) for request_id, num_tokens in wanted]
    except Exception:
        logger.exception("steering reports were lost")
        return [b"" for _ in wanted]


def install(worker: Any) -> None:
    """Make the methods callable by name on this worker."""
    worker.ksteer_load = lambda path, digest: ksteer_load(worker, path, digest)
    worker.ksteer_unload = lambda digest: ksteer_unload(worker, digest)
    worker.ksteer_resident = lambda: ksteer_resident(worker)
    worker.ksteer_barrier = lambda: None
    worker.ksteer_counters = lambda: ksteer_counters(worker)
    worker.ksteer_metrics = lambda: ksteer_metrics(worker)
    worker.ksteer_take_captures = lambda ids=None: ksteer_take_captures(worker, ids)
    worker.ksteer_take_reports = lambda wanted, abandoned: ksteer_take_reports(worker, wanted, abandoned)
