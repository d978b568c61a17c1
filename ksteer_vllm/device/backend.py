"""What steers a step: the tables both backends read, and what each of them does with a decoder layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from torch import Tensor

from ksteer_kernels import RowTables
from ksteer_vllm.device.pool import ProbePool, RequestRows
from ksteer_vllm.device.report_store import ReportStore
from ksteer_vllm.telemetry.events import emit

__all__ = ["Backend", "Counters", "StepTables"]


@dataclass
class Counters:
    """CPU time spent in this plugin, in nanoseconds, and what it was spent on.

    dropped_edits: a token's edits at a layer that were left out because its activations or the edit were not
    finite.
    """

    steps: int = 0
    steered_steps: int = 0
    prepare_ns: int = 0
    op_calls: int = 0
    op_ns: int = 0
    requests: int = 0
    dropped_edits: int = 0

    def set_dropped(self, total: int) -> None:
        """Record how many edits were dropped since start-up, and log new ones."""
        if total > self.dropped_edits:
            self.dropped_edits = total
            emit("dropped_edits", total=total)

    def snapshot(self) -> dict[str, int]:
        """Every counter by name."""
        return asdict(self)


@dataclass(frozen=True)
class StepTables:
    """What a step's tokens meet. Contents change from step to step; the tensors never move.

    token_row: [S, max_tokens] int32, each token's row in each stage, -1: unsteered.
    gain: [S, max_tokens] float32, what is left of a fading strength.
    layer_index: decoder layer -> its place among the open layers.
    requests: row -> the steered request that holds it. reports: None in an engine without reports.
    """

    pool: ProbePool
    rows: RowTables
    token_row: Tensor
    gain: Tensor
    layer_index: dict[int, int]
    requests: dict[int, RequestRows]
    reports: ReportStore | None


class Backend(Protocol):
    """One way to edit the tokens of a step, chosen when the engine starts."""

    @property
    def name(self) -> Literal["torch", "triton"]:
        """The kernels it runs."""

    @property
    def nbytes(self) -> int:
        """Device bytes it holds beside the tables."""

    def begin_step(self, rows_changed: bool) -> None:
        """The step's token rows and gains are in place.

        Args:
            rows_changed: Whether any row's contents differ from the step before.
        """

    def steer(self, hidden: Tensor, residual: Tensor | None, layer: int, index: int) -> None:
        """Edit the step's tokens at one decoder layer, all stages in order, in place.

        Args:
            hidden: [T, d], any float dtype; the only argument written to.
            residual: [T, d] or None; the residual stream is x = hidden + residual.
            layer: The decoder block.
            index: Its place among the open layers.
        """

    def collect_reports(self) -> None:
        """Hand the last step's records to the report store, if they are not there yet."""

    def update_counters(self) -> None:
        """Bring the counters up to date; waits for a device that counts."""
