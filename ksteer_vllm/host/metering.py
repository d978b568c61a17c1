"""Feeding `telemetry.metrics` in the front end of a server (AsyncLLM); offline engines have no meter.

Costs O(edits) per request and nothing per token. The first API server fetches the workers' counters
every few seconds, as long as there are requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ksteer_vllm.admission.runnable import RunnableSpec
from ksteer_vllm.admission.tally import tally
from ksteer_vllm.host.admitted import admitted_request, set_admitted
from ksteer_vllm.host.every_worker import ask_every_worker
from ksteer_vllm.host.requests import Admission
from ksteer_vllm.spec.admitted import AdmittedRequest
from ksteer_vllm.telemetry import events, metrics

__all__ = ["Meter", "observe_report", "open_meter"]

RPC = "ksteer_metrics"
POLL_SECONDS, IDLE_POLL_SECONDS = 5.0, 60.0
"""Seconds between two polls of the workers: while there are requests, and while there are none."""
_MAX_FAILURES = 3

logger = logging.getLogger("vllm.ksteer")

_Totals = dict[str, int]


def open_meter(engine: Any) -> None:
    """Give a server's front end (AsyncLLM) its meter, where steering is enabled."""
    admission: Admission = engine.input_processor.ksteer_admission
    meter = None if admission.live is None else Meter(admission, engine.engine_core)
    engine.input_processor.ksteer_meter = meter
    engine.output_processor.ksteer_meter = meter
    if meter is not None:
        meter.start()


class Meter:
    """What one front end counts: the requests it admits and, if it is the first, what the workers did."""

    def __init__(self, admission: Admission, engine_core: Any) -> None:
        self._metrics = metrics.enable()
        self._admission = admission
        self._engine_core = engine_core
        self._leads = getattr(engine_core, "client_index", 0) == 0
        self._running: dict[str, tuple[AdmittedRequest, Any]] = {}
        self._active = True
        self._registry: Any = None
        self._follower: asyncio.Task[None] | None = None
        self._totals: dict[int, _Totals] = {}

    def start(self) -> None:
        """Announce the engine and follow its workers, in the first front end, once an event loop runs."""
        if not self._leads or self._follower is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        registry = self._admission.registry
        assert registry is not None
        events.emit(
            "started",
            probes={name: probe.digest for name, probe in registry.probes.items()},
            presets=list(registry.presets),
            default=registry.config.default,
            layers=list(registry.open_layers),
        )
        self._follower = loop.create_task(self._follow())

    def noticed(self) -> None:
        """A request has arrived, steered or not."""
        self._active = True
        if self._follower is None:
            self.start()

    def admitted(self, request: Any, spec: RunnableSpec) -> None:
        """A request was admitted with this spec, written into it already; it may be chosen for a report."""
        self._metrics.steered_requests.inc()
        for probe, method in sorted({(e.canonical["probe"], e.canonical["method"]) for e in spec.edits}):
            self._metrics.requests.labels(probe, method, spec.preset).inc()
        for edit in spec.edits:
            if "num_steps" in edit.canonical:
                self._metrics.num_steps.labels(edit.canonical["probe"]).observe(edit.canonical["num_steps"])
        self._sample(request)

    def _sample(self, request: Any) -> None:
        """Have a share of the requests that steer generation alone report to us, chosen by their ids."""
        assert self._admission.live is not None
        share = self._admission.live.config.sample_reports
        if not share:
            return
        admitted = admitted_request(request.sampling_params)
        assert admitted is not None
        if admitted.report or admitted.steers_prompt or not is_sampled(request.request_id, share):
            return
        set_admitted(request.sampling_params, replace(admitted, report=True, sampled=True))

    def watch(self, output_processor: Any, request: Any) -> None:
        """A request has been added to the output processor, under the engine's own id."""
        admitted = admitted_request(request.sampling_params)
        if admitted is not None:
            state = output_processor.request_states[request.request_id]
            self._running[request.request_id] = admitted, state

    def finished(self, request_id: str) -> None:
        """A request has ended, in whatever way. Plain ones are ignored."""
        found = self._running.pop(request_id, None)
        if found is None:
            return
        admitted, state = found
        generated = 0 if state.detokenizer is None else state.detokenizer.num_output_tokens()
        if not generated:  # it ended before its prompt had been read
            return
        counts = tally(admitted.edits, state.prompt_len + generated - 1)
        for probe, count in counts.items():
            self._metrics.tokens.labels(probe).inc(count.tokens)
            self._metrics.gradient_steps.labels(probe).inc(count.gradient_steps)

    async def _follow(self) -> None:
        """Poll the workers for as long as they answer."""
        since_last, failures = IDLE_POLL_SECONDS, 0
        while failures < _MAX_FAILURES:
            registry = self._admission.registry
            if self._active or registry is not self._registry or since_last >= IDLE_POLL_SECONDS:
                self._active, self._registry, since_last = False, registry, 0.0
                try:
                    answers = await ask_every_worker(self._engine_core, RPC)
                    self._active |= self.take(answers)
                    failures = 0
                except Exception as error:  # asleep, shutting down or dead: vLLM says so itself
                    failures += 1
                    logger.debug("no counters from the workers: %s", error)
            await asyncio.sleep(POLL_SECONDS)
            since_last += POLL_SECONDS

    def take(self, answers: Sequence[Mapping[str, Any]]) -> bool:
        """Count what the workers did since the last time; answers: `ksteer_metrics` of each. Returns whether
        they did anything."""
        first = answers[0]["resident"]
        metrics.set_resident(
            probes=len(first["digests"]),
            bytes=sum(answer["resident"]["bytes"] for answer in answers),
            slots_used=first["slots_used"],
            slots_total=first["slots_total"],
        )
        anything = False
        for engine, total in _by_engine(answers).items():
            before = self._totals.get(engine, {})
            more = {name: max(0, count - before.get(name, 0)) for name, count in total.items()}
            self._totals[engine] = total
            anything |= any(more.values())
            self._metrics.engine_steps.inc(more["steps"])
            self._metrics.steered_engine_steps.inc(more["steered_steps"])
            self._metrics.prepare_seconds.inc(more["prepare_ns"] / 1e9)
            self._metrics.op_seconds.inc(more["op_ns"] / 1e9)
            self._metrics.dropped_edits.inc(more["dropped_edits"])
        return anything


def _by_engine(answers: Iterable[Mapping[str, Any]]) -> dict[int, _Totals]:
    """engine -> counters. Ranks run the same steps side by side, so the largest number counts. The ranks of a
    tensor-parallel group make the same edits, so only the first counts what was dropped."""
    found: dict[int, _Totals] = {}
    for answer in answers:
        counters = answer["counters"]
        total = found.setdefault(answer["engine"], {"dropped_edits": 0})
        for name in ("steps", "steered_steps", "prepare_ns", "op_ns"):
            total[name] = max(total.get(name, 0), counters[name])
        total["dropped_edits"] += counters["dropped_edits"] if answer["tensor_rank"] == 0 else 0
    return found


def is_sampled(request_id: str, share: float) -> bool:
    """Whether a request is among a share of all, by its id alone."""
    digest = hashlib.blake2b(request_id.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def observe_report(report: Mapping[str, Any]) -> None:
    """Count the relative shifts of a report: of every edit at every layer, the mean over its tokens."""
    known = metrics.current()
    if known is None:
        return
    for edit in report["edits"]:
        for layer in edit["layers"]:
            shifts = [token["shift"] for token in layer["tokens"] if token["shift"] is not None]
            if shifts:
                known.relative_shift.labels(edit["probe"]).observe(sum(shifts) / len(shifts))
