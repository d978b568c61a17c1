"""One engine's steering state: device tables, the rows of running requests, and the current step.

Takes arrays, not vLLM objects; `ksteer_vllm.host` feeds it from either model runner.
"""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import Tensor

from ksteer_kernels import RowTables, token_rows_
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.device.backend import Backend, Counters, StepTables
from ksteer_vllm.device.capture import Capture
from ksteer_vllm.device.cpu_backend import CPUBackend
from ksteer_vllm.device.gpu_backend import GPUBackend
from ksteer_vllm.device.pool import ProbePool, RequestRows
from ksteer_vllm.device.report_store import ReportStore
from ksteer_vllm.device.row_writer import RowWriter
from ksteer_vllm.errors import ConfigError
from ksteer_vllm.spec.admitted import AdmittedRequest

__all__ = ["SteeringState"]


class SteeringState:
    """Owns everything steering needs on one worker; built once, when the model is loaded.

    Its buffers are persistent, since captured CUDA graphs keep their addresses.

    Args:
        config: Resolved engine options.
        hidden_size: Size d of the residual stream.
        weight_dtype: Of the probes' basis in the device tables.
        device: Where the model runs.
        max_rows: Requests that can run at once.
        max_tokens: Tokens of the largest step, padding included.

    Raises:
        ConfigError: The kernels asked for cannot run on this device.
        ProbeError: A configured probe cannot be read or does not fit.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        *,
        hidden_size: int,
        weight_dtype: torch.dtype,
        device: torch.device,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        kernels = _kernels(config, device)
        self.config = config
        self.device = device
        self.pool = ProbePool(config, hidden_size=hidden_size, weight_dtype=weight_dtype, device=device)
        self.rows = RowTables.allocate(
            max(len(config.layers), 1),
            max_rows,
            self.pool.tables.max_width,
            self.pool.tables.max_labels,
            device,
            config.max_stages,
        )
        shape = (config.max_stages, max_tokens)
        self.token_row = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.gain = torch.ones(shape, device=device)
        self.layer_index = {layer: index for index, layer in enumerate(config.layers)}
        self.capture = Capture(config.capture.layers) if config.capture is not None else None
        self.reports = ReportStore() if config.reports else None
        self.counters = Counters()
        self.active = False
        self._requests: dict[int, RequestRows] = {}
        self._writer = RowWriter(self.rows, self.layer_index, device)
        self._token_row_dirty = False
        tables = StepTables(
            self.pool, self.rows, self.token_row, self.gain, self.layer_index, self._requests, self.reports
        )
        self.backend: Backend = (
            GPUBackend(tables, self.counters)
            if kernels == "triton"
            else CPUBackend(tables, self.counters, use_native=config.kernels == "auto")
        )

    @property
    def num_steered(self) -> int:
        """How many rows hold a steered request."""
        return len(self._requests)

    @property
    def nbytes(self) -> int:
        """Device bytes held by the tables, the scratch memory and the report buffers."""
        return self.pool.tables.nbytes + self.rows.nbytes + self.backend.nbytes

    def snapshot(self) -> dict[str, int]:
        """The counters by name; waits for a device that counts."""
        self.backend.update_counters()
        return self.counters.snapshot()

    def set_row(self, row: int, admitted: AdmittedRequest) -> None:
        """Give a row to a request.

        Reaches the device with the next `begin_step`, together with every other change since the last.
        """
        request = self.pool.request_rows(admitted)
        self._writer.set(row, request)
        self._requests[row] = request
        self.counters.requests += 1

    def clear_row(self, row: int) -> None:
        """The row's request has left. Closing its windows is enough: no token can name the row."""
        if self._requests.pop(row, None) is not None:
            self._writer.clear(row)

    def begin_step(
        self, request_rows: Tensor, query_start_loc: Tensor, positions: Tensor, num_tokens: int
    ) -> None:
        """Point every token of the coming forward pass at its row.

        All tensors lie on the device and are read without waiting for it.

        Args:
            request_rows: [num_reqs] int, each request's row, -1: unsteered.
            query_start_loc: [num_reqs + 1] int32, where each request's tokens begin.
            positions: [>= num_tokens] int64, absolute.
            num_tokens: Tokens of the step, without padding.
        """
        self.backend.collect_reports()
        rows_changed = self._writer.write()
        self.active = True
        self._token_row_dirty = True
        self.counters.steered_steps += 1
        token_rows_(
            self.token_row,
            self.gain,
            positions,
            query_start_loc,
            request_rows,
            self.rows,
            num_tokens,
            self.backend.name,
        )
        self.backend.begin_step(rows_changed)

    def end_step(self) -> None:
        """Steer nothing until the next `begin_step`: for steps without steered requests, and dummy runs."""
        self.active = False
        self.backend.collect_reports()
        if self.capture is not None:
            self.capture.end_step()
        if self.reports is not None:
            self.reports.end_step()
        if self._token_row_dirty:
            self.token_row.fill_(-1)
            self._token_row_dirty = False

    def collect_reports(self) -> None:
        """Bring the reports of the step before into `reports`, where a device still holds them."""
        self.backend.collect_reports()

    def at_layer(self, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
        """The decoder layer's step: record and edit the residual stream hidden + residual, in `hidden`.

        Under CUDA graphs this runs at capture only; on replay the device tables decide who is steered.

        Args:
            hidden: [T, d], any float dtype, edited in place.
            residual: [T, d] or None, read only.
            layer: The decoder block's index; one that is not open is left alone.
        """
        if self.capture is not None:
            self.capture.record(hidden, residual, layer)
        if not self.active and not hidden.is_cuda:  # on a GPU the device tables decide, and graphs replay
            return
        index = self.layer_index.get(layer)
        if index is None:
            return
        started = time.perf_counter_ns()
        self.backend.steer(hidden, residual, layer, index)
        self.counters.op_calls += 1
        self.counters.op_ns += time.perf_counter_ns() - started


def _kernels(config: ResolvedConfig, device: torch.device) -> Literal["torch", "triton"]:
    """The kernels that run. ConfigError if those asked for cannot."""
    if config.kernels == "auto":
        return "triton" if device.type == "cuda" else "torch"
    if config.kernels == "torch" and device.type != "cpu":
        raise ConfigError("ksteer option kernels: torch runs on CPUs only, this engine runs on a GPU")
    return config.kernels
