"""Prometheus metrics of steering, in the registry behind vLLM's own /metrics.

They are made when a process starts to serve (`enable`), so importing this module costs nothing. Until then,
and in offline engines, every function here does nothing. They work in prometheus' multiprocess mode, in which
vLLM runs several API servers: counters and histograms add up, and a gauge shows the value set last.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

__all__ = ["REASONS", "Metrics", "current", "enable", "probe_change", "refused", "set_resident"]

REASONS = (
    "probe", "method", "target", "avoid", "values", "alpha", "strength", "steps", "step_decay", "loss",
    "until", "unit", "metric", "cap", "preserve_norm", "fade", "layers", "where", "condition", "compat",
    "stack", "report", "preset", "size", "route", "disabled", "other",
)  # fmt: skip
"""Why a request was refused: the offending field of the spec; size: the spec is too large; route: the route
would lose the spec; disabled: steering is not enabled in this engine."""

_NUM_STEPS = tuple(2**power for power in range(13))
_SHIFTS = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 100.0)


@dataclass(frozen=True)
class Metrics:
    """The metrics of this process. A request with several edits counts once for each probe and method."""

    steered_requests: Counter
    requests: Counter
    tokens: Counter
    refused: Counter
    gradient_steps: Counter
    num_steps: Histogram
    relative_shift: Histogram
    resident_probes: Gauge
    resident_bytes: Gauge
    probe_slots: Gauge
    prepare_seconds: Counter
    op_seconds: Counter
    engine_steps: Counter
    steered_engine_steps: Counter
    dropped_edits: Counter
    probe_changes: Counter


_metrics: Metrics | None = None
_lock = threading.Lock()


def current() -> Metrics | None:
    """The metrics of this process, or None if it does not serve."""
    return _metrics


def enable() -> Metrics:
    """Make and register the metrics of this process, once."""
    global _metrics
    with _lock:
        if _metrics is None:
            _metrics = _make()
        return _metrics


def _make() -> Metrics:
    from prometheus_client import Counter, Gauge, Histogram

    def counter(name: str, text: str, *labels: str) -> Any:
        return Counter(f"ksteer:{name}", text, labels)

    def gauge(name: str, text: str, *labels: str) -> Any:
        return Gauge(f"ksteer:{name}", text, labels, multiprocess_mode="mostrecent")

    def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
        return Histogram(f"ksteer:{name}", text, ("probe",), buckets=buckets)

    made = Metrics(
        steered_requests=counter("steered_requests", "Requests admitted with steering"),
        requests=counter(
            "requests",
            "Requests admitted with steering; one with several edits counts once per probe and method",
            "probe", "method", "preset",
        ),
        tokens=counter("tokens", "Positions of finished requests inside their edits' windows", "probe"),
        refused=counter("refused", "Requests refused because of their steering spec", "reason"),
        gradient_steps=counter(
            "gradient_steps", "Gradient steps asked for: positions times layers times num_steps", "probe"
        ),
        num_steps=histogram("num_steps", "num_steps of admitted gradient edits", _NUM_STEPS),
        relative_shift=histogram(
            "relative_shift", "Mean |x' - x| / |x| of a reported edit at a layer, over its tokens", _SHIFTS
        ),
        resident_probes=gauge("resident_probes", "Probes on the devices"),
        resident_bytes=gauge("resident_bytes", "Bytes of device tables, summed over all workers"),
        probe_slots=gauge("probe_slots", "Device slots for probes, per worker", "state"),
        prepare_seconds=counter(
            "prepare_seconds", "CPU seconds spent preparing steps, on the slowest worker of each engine"
        ),
        op_seconds=counter(
            "op_seconds", "CPU seconds spent in the steering op, on the slowest worker of each engine"
        ),
        engine_steps=counter("engine_steps", "Engine steps"),
        steered_engine_steps=counter("steered_engine_steps", "Engine steps with at least one steered token"),
        dropped_edits=counter(
            "dropped_edits",
            "Edits of one token at one layer that were dropped: its activations or the edit were not finite",
        ),
        probe_changes=counter("probe_changes", "Changes of probes while serving", "action", "outcome"),
    )  # fmt: skip
    for reason in REASONS:  # a counter that only appears with its first event hides that event from rate()
        made.refused.labels(reason)
    for action in ("load", "replace", "retire"):
        made.probe_changes.labels(action, "ok")
    return made


def refused(reason: str) -> None:
    """Count a refused request; reason: one of `REASONS`."""
    if _metrics is not None:
        _metrics.refused.labels(reason).inc()


def probe_change(action: str, outcome: str) -> None:
    """Count a change of a probe; outcome: ok, or why not. Both arguments are from bounded sets."""
    if _metrics is not None:
        _metrics.probe_changes.labels(action, outcome).inc()


def set_resident(*, probes: int, bytes: int, slots_used: int, slots_total: int) -> None:
    """Set what the workers hold now.

    Args:
        probes: Resident probes.
        bytes: Device bytes, summed over all workers.
        slots_used: Used slots of one worker.
        slots_total: All slots of one worker.
    """
    if _metrics is not None:
        _metrics.resident_probes.set(probes)
        _metrics.resident_bytes.set(bytes)
        _metrics.probe_slots.labels("used").set(slots_used)
        _metrics.probe_slots.labels("free").set(slots_total - slots_used)
