"""Metrics, refusals and events without an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest, multiprocess

from ksteer_vllm.admission.refusals import reason_of
from ksteer_vllm.admission.tally import Tally, tally
from ksteer_vllm.host.metering import Meter, is_sampled
from ksteer_vllm.spec.admitted import AdmittedEdit
from ksteer_vllm.telemetry import events, metrics
from testbed.serving import child_environment

WHOLE = (0, 4, 3, 2**62)


def edit(windows: Any, probe: str = "a", fade: Any = None, **more: Any) -> AdmittedEdit:
    canonical = {"probe": probe, "method": "gradient", "layers": [1], "alpha": 1.0, **more}
    return AdmittedEdit(canonical, "fingerprint", "digest", windows, fade=fade)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([edit(WHOLE, num_steps=2)], {"a": Tally(10, 20)}),
        ([edit((0, 0, 3, 5), layers=[1, 2], num_steps=2)], {"a": Tally(2, 8)}),
        ([edit(WHOLE), edit((0, 2, 0, 0), "b")], {"a": Tally(10), "b": Tally(2)}),
        ([edit((0, 3, 0, 0)), edit((2, 4, 0, 0))], {"a": Tally(4)}),
        ([edit(WHOLE, fade=(3, 2))], {"a": Tally(5)}),
        ([edit(WHOLE, alpha=0)], {"a": Tally()}),
        ([edit(WHOLE, alpha=0, method="ace")], {"a": Tally(10)}),
        ([edit((0, 0, 50, 60))], {"a": Tally()}),
    ],
)
def test_tally(edits: list[AdmittedEdit], expected: dict[str, Tally]) -> None:
    """A prompt of four tokens; ten positions went through the model."""
    assert tally(edits, 10) == expected


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("ksteer", "other"),
        ("ksteer.probe", "probe"),
        ("ksteer.target.hot", "target"),
        ("ksteer.num_steps", "steps"),
        ("ksteer.stack", "stack"),
        ("ksteer.stack.1.until.target", "until"),
        ("ksteer.stack.1.num_steps", "steps"),
        ("ksteer.preset", "preset"),
        ("ksteer.what a client wrote", "other"),
        ("ksteer.disabled", "other"),
        ("ksteer.route", "other"),
        ("ksteer_admission", "other"),
        ("", "other"),
    ],
)
def test_reasons_are_of_a_bounded_set(parameter: str, reason: str) -> None:
    assert reason_of(parameter) == reason
    assert reason in metrics.REASONS


def test_a_share_of_the_requests_is_sampled_by_id() -> None:
    ids = [f"cmpl-{number}" for number in range(2000)]
    chosen = [request_id for request_id in ids if is_sampled(request_id, 0.25)]
    assert abs(len(chosen) - 500) < 100  # five standard deviations of 2000 fair draws
    assert chosen == [request_id for request_id in ids if is_sampled(request_id, 0.25)]
    assert all(is_sampled(request_id, 1.0) for request_id in ids)
    assert not any(is_sampled(request_id, 0.0) for request_id in ids)


def answer(engine: int, tensor_rank: int, **counters: int) -> dict[str, Any]:
    zero = dict.fromkeys(("steps", "steered_steps", "prepare_ns", "op_ns", "dropped_edits"), 0)
    resident = {"digests": ["x", "y"], "slots_used": 2, "slots_total": 5, "bytes": 100}
    return {"engine": engine, "tensor_rank": tensor_rank, "counters": zero | counters, "resident": resident}


def test_what_workers_did_adds_up_over_engines_and_not_over_ranks() -> None:
    meter = Meter(SimpleNamespace(registry=None, live=None), SimpleNamespace())  # type: ignore[arg-type]
    known = metrics.enable()
    assert metrics.enable() is known

    def values() -> tuple[float, ...]:
        counters = known.engine_steps, known.prepare_seconds, known.dropped_edits
        return tuple(next(iter(counter.collect())).samples[0].value for counter in counters)

    before = values()
    ranks = [answer(0, 0, steps=5, prepare_ns=10**9, dropped_edits=2),
             answer(0, 1, steps=5, prepare_ns=3 * 10**9, dropped_edits=2)]  # fmt: skip
    assert meter.take([*ranks, answer(1, 0, steps=7)])
    assert values() == pytest.approx([old + new for old, new in zip(before, (12, 3, 2), strict=True)])
    assert not meter.take([*ranks, answer(1, 0, steps=7)])
    assert meter.take([*ranks, answer(1, 0, steps=8)])
    assert values() == pytest.approx([old + new for old, new in zip(before, (13, 3, 2), strict=True)])
    assert known.resident_bytes._value.get() == 300


def test_importing_makes_no_metric() -> None:
    program = (
        "import sys, ksteer_vllm.telemetry.metrics as m; m.refused('probe'); m.probe_change('load', 'ok'); "
        "m.set_resident(probes=1, bytes=1, slots_used=1, slots_total=1); "
        "assert m.current() is None and 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=child_environment(), timeout=120)


def test_processes_add_up(tmp_path: Any) -> None:
    """As with several API servers: each has its own files in PROMETHEUS_MULTIPROC_DIR."""
    program = (
        "import ksteer_vllm.telemetry.metrics as m; m.enable(); m.refused('probe'); "
        "m.set_resident(probes=3, bytes=9, slots_used=1, slots_total=4)"
    )
    environment = child_environment({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)})
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(tmp_path))
    text = generate_latest(registry).decode()
    assert 'ksteer:refused_total{reason="probe"} 2.0' in text
    assert "ksteer:resident_probes 3.0" in text
    assert 'ksteer:probe_slots{state="free"} 3.0' in text


@pytest.fixture
def lines(heard: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: the events logged so far."""
    monkeypatch.setattr(events, "_rates", {})  # full buckets
    return lambda: [json.loads(message.removeprefix(events.PREFIX)) for message in heard]


def test_values_are_bounded_and_lines_stay_lines(lines: Any) -> None:
    events.emit(
        "probe_loaded", name="a\nb", text="x" * 10_000, many=list(range(1000)), bad=float("nan"), odd={1: {2}}
    )
    (event,) = lines()
    assert event["event"] == "probe_loaded"
    assert event["name"] == "a\nb"
    assert len(event["text"]) == events.MAX_TEXT
    assert len(event["many"]) == events.MAX_ITEMS
    assert event["bad"] is None
    assert event["odd"] == {"1": [2]}


def test_what_clients_cause_is_rate_limited(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    for number in range(500):
        events.emit("refused", number=number)
        events.emit("dropped_edits", total=number)
    found = lines()
    assert len([event for event in found if event["event"] == "refused"]) == 20
    assert len([event for event in found if event["event"] == "dropped_edits"]) == 1
    now[0] += 60
    events.emit("refused", number=500)
    assert lines()[-1] == {"event": "refused", "number": 500, "suppressed": 480}
