"""Bringing a finished request's steering report from the workers to its output, in the front end.

The worker methods are in `host.rpc`, the records in `ksteer_vllm.report`. A request that asks for a report
gets our request state and, in AsyncLLM, our output collector; others keep vLLM's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from ksteer_vllm.host.admitted import admitted_request
from ksteer_vllm.host.every_worker import ask_every_worker
from ksteer_vllm.host.metering import observe_report
from ksteer_vllm.host.requests import Admission
from ksteer_vllm.host.version import require_methods
from ksteer_vllm.report import REPORT_ATTRIBUTE, assemble
from ksteer_vllm.spec.admitted import AdmittedRequest

__all__ = ["ReportDesk", "open_desk", "wants_report"]

logger = logging.getLogger("vllm.ksteer")

RPC = "ksteer_take_reports"
_METHODS = {
    RequestState: ("_new_completion_output",),
    RequestOutputCollector: ("get", "get_nowait", "close"),
}


@dataclass(frozen=True)
class _Ticket:
    """One finished completion whose report is to be fetched. request_id is the engine's own."""

    request_id: str
    admitted: AdmittedRequest
    labels: Mapping[str, Sequence[str]]
    prompt_length: int
    num_generated: int

    @property
    def num_tokens(self) -> int:
        """Accepted tokens that went through the model. The last one generated did not, or to no effect."""
        return self.prompt_length + self.num_generated - 1


def wants_report(request: Any) -> bool:
    """Whether an EngineCoreRequest was admitted with `"report": true`."""
    admitted = admitted_request(request.sampling_params)
    return admitted is not None and admitted.report


def open_desk(engine: Any) -> None:
    """Give a front end (LLMEngine, AsyncLLM) its desk for steering reports."""
    desk = ReportDesk(engine.input_processor.ksteer_admission, engine.engine_core)
    engine.output_processor.ksteer_desk = desk


class ReportDesk:
    """The reports of one engine's front end: which requests owe one, and fetching it."""

    def __init__(self, admission: Admission, engine_core: Any) -> None:
        self._admission = admission
        self._engine_core = engine_core
        self._running: set[str] = set()
        self._abandoned: set[str] = set()
        self.finished: list[tuple[Any, _Ticket]] = []
        """LLMEngine: completions that have ended in this step."""
        for owner, names in _METHODS.items():
            require_methods(owner, names)

    def watch(self, output_processor: Any, request: Any) -> None:
        """Follow a request that wants a report and has just been added to the output processor."""
        state = output_processor.request_states[request.request_id]
        state.__class__ = ReportingState
        state.ksteer_desk = self
        admitted = admitted_request(request.sampling_params)
        assert admitted is not None
        state.ksteer_admitted = admitted
        state.ksteer_labels = self._admission.labels(admitted)
        if state.queue is not None and not isinstance(state.queue, ReportingCollector):
            state.queue.__class__ = ReportingCollector
            state.queue.ksteer_desk = self
            state.queue.ksteer_tickets = {}
        self._running.add(request.request_id)
        # Aborted in LLMEngine, which then makes no output: nobody will collect these.
        gone = {other for other in self._running if other not in output_processor.request_states}
        self._running -= gone
        self._abandoned |= gone

    def issue(self, state: Any) -> _Ticket:
        """The ticket of a request that has just finished."""
        self._running.discard(state.request_id)
        generated = state.detokenizer.num_output_tokens()
        return _Ticket(
            state.request_id,
            state.ksteer_admitted,
            state.ksteer_labels,
            state.prompt_len,
            generated,
        )

    def abandon(self, tickets: Sequence[_Ticket]) -> None:
        """Nobody will collect these: their records are dropped with the next call to the workers."""
        self._abandoned.update(ticket.request_id for ticket in tickets)

    def deliver(self, due: Sequence[tuple[Any, _Ticket]]) -> None:
        """Fetch the records and attach the reports to their completions."""
        pieces = self._engine_core.collective_rpc(RPC, None, self._arguments(due))
        self._attach(due, pieces)

    async def deliver_async(self, due: Sequence[tuple[Any, _Ticket]]) -> None:
        """`deliver` for AsyncLLM. With data parallelism every engine is asked; one knows the request.

        A reply whose report cannot be fetched (the engine is shutting down, say) is still delivered.
        """
        arguments = self._arguments(due)
        try:
            self._attach(due, await ask_every_worker(self._engine_core, RPC, arguments))
        except BaseException as error:
            self._abandoned.update(arguments[1])
            self.abandon([ticket for _, ticket in due])
            if not isinstance(error, Exception):
                raise
            logger.error("steering reports could not be fetched: %s", error)
            for completion, ticket in due:
                if not ticket.admitted.sampled:
                    setattr(completion, REPORT_ATTRIBUTE, {"error": "the report could not be fetched"})

    def _arguments(self, due: Sequence[tuple[Any, _Ticket]]) -> tuple[list[Any], list[str]]:
        abandoned, self._abandoned = self._abandoned, set()
        return [[ticket.request_id, ticket.num_tokens] for _, ticket in due], sorted(abandoned)

    def _attach(self, due: Sequence[tuple[Any, _Ticket]], pieces: Sequence[Sequence[bytes]]) -> None:
        """pieces: per worker, the records of each."""
        for (completion, ticket), records in zip(due, zip(*pieces, strict=True), strict=True):
            report = assemble(
                [edit.edit for edit in ticket.admitted.edits], ticket.prompt_length, records, ticket.labels
            )
            observe_report(report)
            if not ticket.admitted.sampled:
                setattr(completion, REPORT_ATTRIBUTE, report)


class ReportingState(RequestState):
    """A request's state in the output processor: when it finishes, its report is due."""

    ksteer_desk: ReportDesk
    ksteer_admitted: AdmittedRequest
    ksteer_labels: Mapping[str, Sequence[str]]

    def _new_completion_output(self, *args: Any, **kwargs: Any) -> Any:
        completion = super()._new_completion_output(*args, **kwargs)
        if completion.finish_reason is not None:
            ticket = self.ksteer_desk.issue(self)
            if self.queue is None:
                self.ksteer_desk.finished.append((completion, ticket))
            else:
                self.queue.ksteer_tickets[completion.index] = ticket
        return completion


class ReportingCollector(RequestOutputCollector):
    """What AsyncLLM.generate reads a request's outputs from: finished completions come with their report.

    Tickets are kept by index, because streamed outputs that nobody has read yet are merged.
    """

    ksteer_desk: ReportDesk
    ksteer_tickets: dict[int, _Ticket]

    def get_nowait(self) -> Any:
        """Nothing, so that the reader goes on to `get`, which can wait for the workers."""
        return None

    async def get(self) -> Any:
        output = await super().get()
        tickets = self.ksteer_tickets
        due = [(c, tickets.pop(c.index)) for c in output.outputs if c.finished() and c.index in tickets]
        if due:
            await self.ksteer_desk.deliver_async(due)
        return output

    def close(self) -> None:
        super().close()
        self.ksteer_desk.abandon(list(self.ksteer_tickets.values()))
        self.ksteer_tickets = {}
