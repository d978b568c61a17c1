"""Worker methods for `collective_rpc`: counters, captured activations and steering reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ksteer_vllm.host.loading import worker_state

__all__ = ["install"]


def ksteer_counters(worker: Any) -> dict[str, int]:
    """Host time and calls since start-up, see `ksteer_vllm.batch.Counters`."""
    return worker_state(worker).counters.snapshot()


def ksteer_take_captures(worker: Any, ids: Sequence[str] | None = None) -> bytes:
    """What was captured and not yet taken, see `ksteer_vllm.capture.Capture.take`."""
    capture = worker_state(worker).capture
    return b"" if capture is None else capture.take(None if ids is None else set(ids))


def ksteer_take_reports(
    worker: Any, wanted: Sequence[tuple[str, int]], abandoned: Sequence[str]
) -> list[bytes]:
    """The records of each wanted request (id, number of tokens), see `ksteer_vllm.report.ReportStore.take`.

    Those of abandoned requests are dropped.
    """
    state = worker_state(worker)
    state.collect_reports()
    reports = state.reports
    if reports is None:
        return [b"" for _ in wanted]
    for request_id in abandoned:
        reports.take(request_id, 0)
    return [reports.take(request_id, num_tokens) for request_id, num_tokens in wanted]


def install(worker: Any) -> None:
    """Make the methods callable by name on this worker."""
    worker.ksteer_counters = lambda: ksteer_counters(worker)
    worker.ksteer_take_captures = lambda ids=None: ksteer_take_captures(worker, ids)
    worker.ksteer_take_reports = lambda wanted, abandoned: ksteer_take_reports(worker, wanted, abandoned)
