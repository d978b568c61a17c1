"""Per-step rows on vLLM's V2 model runner (`v1/worker/gpu/model_runner.py`, default on GPUs).

The class of the runner's ModelState object is replaced by a subclass, so whatever state class the model
resolved to keeps working. A request's row is its index in the runner's request state.
"""

from __future__ import annotations

import time
from typing import Any

from ksteer_vllm.device.state import SteeringState
from ksteer_vllm.host.admitted import admitted_request
from ksteer_vllm.host.version import require_methods

__all__ = ["hook"]

_METHODS = ("add_request", "remove_request", "prepare_inputs", "prepare_dummy_inputs")


def _steered_class(original: Any) -> Any:
    """A subclass of the resolved state class. Single inheritance: an object can be given no other layout."""

    class SteeredModelState(original):
        ksteer: SteeringState
        ksteer_rows: dict[str, int]

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            if self.ksteer.capture is not None:
                self.ksteer.capture.add_request(new_req_data.req_id, new_req_data.sampling_params)
            admitted = admitted_request(new_req_data.sampling_params)
            if admitted is None:
                return
            started = time.perf_counter_ns()
            self.ksteer.set_row(req_index, admitted)
            if self.ksteer.reports is not None:
                self.ksteer.reports.add_request(new_req_data.req_id, admitted)
            self.ksteer_rows[new_req_data.req_id] = req_index
            self.ksteer.counters.prepare_ns += time.perf_counter_ns() - started

        def remove_request(self, req_id: str) -> None:
            row = self.ksteer_rows.pop(req_id, None)
            if row is not None:
                self.ksteer.clear_row(row)
            if self.ksteer.capture is not None:
                self.ksteer.capture.remove_request(req_id)
            if self.ksteer.reports is not None:
                self.ksteer.reports.remove_request(req_id)
            super().remove_request(req_id)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            inputs = super().prepare_inputs(input_batch, req_states)
            started = time.perf_counter_ns()
            self.ksteer.counters.steps += 1
            if self.ksteer_rows:
                self.ksteer.begin_step(
                    input_batch.idx_mapping,
                    input_batch.query_start_loc,
                    input_batch.positions,
                    input_batch.num_tokens,
                )
            else:
                self.ksteer.end_step()
            if self.ksteer.capture is not None:
                counts = input_batch.num_scheduled_tokens[: input_batch.num_reqs]
                computed = input_batch.num_computed_tokens_np[: input_batch.num_reqs]
                self.ksteer.capture.begin_step(input_batch.req_ids, counts.tolist(), computed.tolist())
            if self.ksteer.reports is not None:
                counts = input_batch.num_scheduled_tokens[: input_batch.num_reqs]
                self.ksteer.reports.begin_step(input_batch.req_ids, counts, input_batch.positions)
            self.ksteer.counters.prepare_ns += time.perf_counter_ns() - started
            return inputs

        def prepare_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
            self.ksteer.end_step()
            return super().prepare_dummy_inputs(*args, **kwargs)

    SteeredModelState.__name__ = f"Steered{original.__name__}"
    return SteeredModelState


def hook(runner: Any, state: SteeringState) -> None:
    """Follow the runner's requests and point each step's tokens at their rows."""
    model_state = runner.model_state
    require_methods(type(model_state), _METHODS)
    model_state.ksteer = state
    model_state.ksteer_rows = {}
    model_state.__class__ = _steered_class(type(model_state))
