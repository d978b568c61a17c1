"""The row tables: what each request asks for, by layer, stage and request row.

An edit of a request runs in a stage: at each layer stage 0 comes first, then stage 1, and so on. The tables
of one layer and stage are addressed by entry = layer * num_stages + stage.
Shapes: num_tokens T, open layers L, stages S, entries N = L S, rows R, table width H, num_labels K.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag

import torch
from torch import Tensor

from ksteer_kernels.tables import NO_SLOT, ProbeTables, require_positive

NO_ROW = -1


class Program(IntEnum):
    """What is done to one token in the space of its slot's basis.

    GRADIENT: num_steps gradient steps on a probe's loss (K-Steering, arXiv 2505.24535, Algorithm 1).
    REFLECT: subtract strength * (x.v)/(v.v) v with v the gradient of the mean avoid logit; strength 2 is the
        Householder reflection of Algorithm 2, 1 removes the component.
    ADD: s = -strength * readout.
    AFFINE: q = act(p + bias), y = matrix q, s_i = gate_i (scale_i y_i + readout_i), gate_i = q[gate_unit_i].
    CONDITION: edits nothing; opens the row's next stage for this token, or shuts it.
    """

    GRADIENT = 0
    REFLECT = 1
    ADD = 2
    AFFINE = 3
    CONDITION = 4


class Loss(IntEnum):
    """The loss of GRADIENT over logits f with label weights w > 0.

    MEAN: sum_avoid w f - sum_target w f (the paper's). SOFTMIN: sum_avoid w f + log sum_target w exp(-f).
    HINGE: sum_target w max(0, margin - f) + sum_avoid w max(0, f + margin).
    """

    MEAN = 0
    SOFTMIN = 1
    HINGE = 2


class Flag(IntFlag):
    """NORMALISED: a GRADIENT step has the length of its size, whatever the gradient's.
    PRESERVE_NORM: x' is scaled to |x|, after the cap. REPORT: the edit is reported.
    GATED: only where the stage before, a CONDITION, is open; a GATED CONDITION opens where both do.
    COSINE: CONDITION compares with |x| times the threshold.
    """

    NORMALISED = 1
    PRESERVE_NORM = 2
    GATED = 4
    REPORT = 8
    COSINE = 16


NO_FLAGS = Flag(0)


@dataclass
class RowTables:
    """What each request row does at each entry (layer and stage).

    Attributes:
        slot: [N, R] int32; NO_SLOT (-1): nothing.
        program: [N, R] int32, a `Program`.
        loss: [N, R] int32, a `Loss` (GRADIENT).
        flags: [N, R] int32, of `Flag`.
        num_steps: [N, R] int32 (GRADIENT).
        strength: [N, R] float32; step size of GRADIENT, coefficient of ADD, factor of REFLECT, otherwise 1;
            0 edits nothing.
        decay: [N, R] float32; step t of GRADIENT has the size strength * decay**t.
        margin: [N, R] float32; of HINGE, a logit; the threshold of CONDITION.
        until_target: [N, R] float32 logits; GRADIENT stops once every target's logit is at least this and
            every avoid's at most until_avoid; -inf and +inf together: never.
        until_avoid: [N, R] float32 logits.
        cap: [N, R] float32; |x' - x| is at most cap * |x|; inf: no cap.
        readout: [N, R, H] float32; GRADIENT (MEAN), REFLECT: u = head^T c; ADD, AFFINE: see Program;
            CONDITION of a slot without a head: what p + bias is multiplied by.
        scale: [N, R, H] float32; AFFINE.
        label_weights: [N, R, K] float32; c: +w on avoid, -w on target labels.
        windows: [S, R, 4] int64 absolute positions; a token at pos is steered iff
            windows[0] <= pos < windows[1] or windows[2] <= pos < windows[3].
        fade: [S, R, 2] int64 (start, length); from start on the strength falls linearly to 0 over length
            positions; length 0: no fade.
        divisor: [S, R] int64; the strength of tokens in the first window is divided by it; 0 is 1.
    """

    slot: Tensor
    program: Tensor
    loss: Tensor
    flags: Tensor
    num_steps: Tensor
    strength: Tensor
    decay: Tensor
    margin: Tensor
    until_target: Tensor
    until_avoid: Tensor
    cap: Tensor
    readout: Tensor
    scale: Tensor
    label_weights: Tensor
    windows: Tensor
    fade: Tensor
    divisor: Tensor

    @classmethod
    def allocate(
        cls,
        num_layers: int,
        num_rows: int,
        max_width: int,
        max_labels: int,
        device: torch.device | str,
        num_stages: int = 1,
    ) -> RowTables:
        """Allocate tables in which no row does anything.

        Args:
            num_layers: L, open layers.
            num_rows: R, requests that can run at once.
            max_width: H, as the slots'.
            max_labels: K, as the slots'.
            device: Where kernels run.
            num_stages: S, edits a request can have at a layer.

        Raises:
            ValueError: A size is below 1.
        """
        require_positive(
            num_layers=num_layers,
            num_rows=num_rows,
            max_width=max_width,
            max_labels=max_labels,
            num_stages=num_stages,
        )
        entries = num_layers * num_stages

        def table(value: float, dtype: torch.dtype = torch.float32, *more: int) -> Tensor:
            return torch.full((entries, num_rows, *more), value, dtype=dtype, device=device)

        def by_stage(*more: int) -> Tensor:
            return torch.zeros((num_stages, num_rows, *more), dtype=torch.int64, device=device)

        inf = float("inf")
        return cls(
            slot=table(NO_SLOT, torch.int32),
            program=table(Program.GRADIENT, torch.int32),
            loss=table(Loss.MEAN, torch.int32),
            flags=table(0, torch.int32),
            num_steps=table(0, torch.int32),
            strength=table(0.0),
            decay=table(1.0),
            margin=table(0.0),
            until_target=table(-inf),
            until_avoid=table(inf),
            cap=table(inf),
            readout=table(0.0, torch.float32, max_width),
            scale=table(0.0, torch.float32, max_width),
            label_weights=table(0.0, torch.float32, max_labels),
            windows=by_stage(4),
            fade=by_stage(2),
            divisor=by_stage(),
        )

    @property
    def num_stages(self) -> int:
        return self.windows.shape[0]

    @property
    def num_rows(self) -> int:
        return self.slot.shape[1]

    @property
    def nbytes(self) -> int:
        """Device bytes held by all tables."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))


@dataclass(frozen=True)
class RowSettings:
    """One row's cell of the tables, on the CPU; its tensors may be shorter than the table's.

    readout, scale: [<= H]; label_weights: [<= K]; None: zeros. See RowTables for the rest.
    """

    slot: int
    program: Program
    strength: float = 1.0
    num_steps: int = 0
    decay: float = 1.0
    loss: Loss = Loss.MEAN
    flags: Flag = NO_FLAGS
    margin: float = 0.0
    until_target: float = -float("inf")
    until_avoid: float = float("inf")
    cap: float = float("inf")
    readout: Tensor | None = None
    scale: Tensor | None = None
    label_weights: Tensor | None = None


def check_metric(settings: RowSettings, probes: ProbeTables) -> None:
    """Refuse what is undefined at a slot with a metric.

    A reflection and a kept norm need x . U^T s, of which basis x says nothing once U is not the basis.

    Args:
        settings: Of one row, placed.
        probes: The tables its slot is in.

    Raises:
        ValueError: The slot has a metric, and the program is REFLECT or the flags hold PRESERVE_NORM.
    """
    if not probes.has_metric(settings.slot):
        return
    if settings.program == Program.REFLECT:
        raise ValueError("program: REFLECT is undefined at a slot with a metric")
    if settings.flags & Flag.PRESERVE_NORM:
        raise ValueError("flags: PRESERVE_NORM is undefined at a slot with a metric")
