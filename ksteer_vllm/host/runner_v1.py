"""Per-step rows on vLLM's V1 model runner (`gpu_model_runner.py`, what CPU builds run).

Hooks are set on the runner instance: other engines of the process are untouched.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ksteer_vllm.device.state import SteeringState
from ksteer_vllm.host.admitted import admitted_request
from ksteer_vllm.host.version import require_methods
from ksteer_vllm.spec.admitted import AdmittedRequest

__all__ = ["hook"]

_METHODS = ("_update_states", "_prepare_inputs", "_dummy_run")


class RowAllocator:
    """Rows of steered requests. V1 moves requests about in its batch, so they keep a row of their own."""

    def __init__(self, state: SteeringState, num_rows: int) -> None:
        self._state = state
        self._free = list(range(num_rows - 1, -1, -1))
        self._admitted: dict[str, AdmittedRequest] = {}
        self._rows: dict[str, int] = {}

    @property
    def any_steered(self) -> bool:
        return bool(self._admitted)

    def add(self, request_id: str, sampling_params: Any) -> None:
        admitted = admitted_request(sampling_params)
        if admitted is not None:
            self._admitted[request_id] = admitted
            if self._state.reports is not None:
                self._state.reports.add_request(request_id, admitted)

    def finish(self, request_id: str) -> None:
        self.leave(request_id)
        self._admitted.pop(request_id, None)
        if self._state.reports is not None:
            self._state.reports.remove_request(request_id)

    def leave(self, request_id: str) -> None:
        """Preempted or finished: the row is free; a preempted request gets another when it comes back."""
        row = self._rows.pop(request_id, None)
        if row is not None:
            self._state.clear_row(row)
            self._free.append(row)

    def row(self, request_id: str) -> int:
        """The row of a request in this step, -1 for a plain one."""
        row = self._rows.get(request_id)
        if row is not None:
            return row
        admitted = self._admitted.get(request_id)
        if admitted is None:
            return -1
        row = self._free.pop()
        self._rows[request_id] = row
        self._state.set_row(row, admitted)
        return row


def hook(runner: Any, state: SteeringState) -> None:
    """Follow the runner's requests and point each step's tokens at their rows."""
    require_methods(type(runner), _METHODS)
    rows = RowAllocator(state, runner.max_num_reqs)
    update_states, prepare_inputs, dummy_run = (getattr(runner, name) for name in _METHODS)

    def _update_states(scheduler_output: Any) -> Any:
        started = time.perf_counter_ns()
        if rows.any_steered:
            for request_id in scheduler_output.finished_req_ids:
                rows.finish(request_id)
            for request_id in scheduler_output.preempted_req_ids or ():
                rows.leave(request_id)
        for new in scheduler_output.scheduled_new_reqs:
            rows.add(new.req_id, new.sampling_params)
        if state.capture is not None:
            for request_id in scheduler_output.finished_req_ids:
                state.capture.remove_request(request_id)
            for new in scheduler_output.scheduled_new_reqs:
                state.capture.add_request(new.req_id, new.sampling_params)
        state.counters.prepare_ns += time.perf_counter_ns() - started
        return update_states(scheduler_output)

    def _prepare_inputs(scheduler_output: Any, num_scheduled_tokens: np.ndarray, *args: Any) -> Any:
        prepared = prepare_inputs(scheduler_output, num_scheduled_tokens, *args)
        started = time.perf_counter_ns()
        state.counters.steps += 1
        request_ids = runner.input_batch.req_ids[: runner.input_batch.num_reqs]
        steered = rows.any_steered and [rows.row(request_id) for request_id in request_ids]
        if steered and max(steered) >= 0:
            request_rows = torch.tensor(steered, dtype=torch.int32)
            if state.device.type == "cuda":
                request_rows = request_rows.pin_memory().to(state.device, non_blocking=True)
            state.begin_step(
                request_rows,
                _on_device(runner.query_start_loc),
                _on_device(runner.positions),
                int(scheduler_output.total_num_scheduled_tokens),
            )
        else:
            state.end_step()
        if state.capture is not None:
            computed = runner.input_batch.num_computed_tokens_cpu[: len(request_ids)]
            state.capture.begin_step(request_ids, num_scheduled_tokens.tolist(), computed.tolist())
        if state.reports is not None:
            state.reports.begin_step(request_ids, num_scheduled_tokens, _on_device(runner.positions))
        state.counters.prepare_ns += time.perf_counter_ns() - started
        return prepared

    def _dummy_run(*args: Any, **kwargs: Any) -> Any:
        state.end_step()
        return dummy_run(*args, **kwargs)

    runner._update_states = _update_states
    runner._prepare_inputs = _prepare_inputs
    runner._dummy_run = _dummy_run


def _on_device(buffer: Any) -> torch.Tensor:
    return buffer.gpu if hasattr(buffer, "gpu") else buffer
