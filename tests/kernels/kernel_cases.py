"""Batches to steer, the truth about them, and the one table of tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from kernel_edits import Edit, Maker
from kernel_methods import METHODS
from torch import Tensor

from ksteer_kernels import Flag, ProbeTables, RowSettings, RowTables, Workspace, steer_
from ksteer_kernels.reference.mlp import probe_logits

# Error of a token's edit, relative to the edit's norm, by the dtype of hidden_states.
# float32: sums of up to some thousand products carry about 1e-6, over many steps 1e-5.
# bfloat16: the edit itself is as exact as in float32 (with bfloat16 weights s has 16 bits in Triton, 1e-5).
#   The result is rounded once: half a unit in its last place, at most 2**-8 of its size, is allowed on top,
#   per entry; ROUNDING below is that bound.
EDIT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 6e-5}
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}
# A ReLU whose input is of rounding size may fall on the other side. That token's later steps then differ by
# one unit's share of the gradient: allowed for this share of tokens (at least one), up to this error.
FLIPPED_SHARE = 0.02
FLIPPED_TOLERANCE = 0.15
# Over the whole batch, flips included: root mean square of the error over that of the edit.
RMS_RATIO = 1e-2
# Norms made equal, and logits, are float32 sums of some thousand products at most: relative to their size.
NORM_TOLERANCE = 2e-6
LOGIT_TOLERANCE = 1e-4

Plan = Sequence[Edit | None]
LAYER = 1


@dataclass(frozen=True)
class Expected:
    """The truth about one edit of one token; before and after: logits [K], steps: -1 where there are none."""

    stage: int
    token: int
    shift: float
    steps: int
    before: Tensor | None
    after: Tensor | None


@dataclass
class Case:
    """One batch with everything that `steer_` takes, and what is needed to work out the truth."""

    hidden: Tensor
    residual: Tensor | None
    token_row: Tensor
    gain: Tensor | None
    probes: ProbeTables
    rows: RowTables
    plans: list[Plan]
    layer: int = LAYER

    def run(self, backend: str, **more: object) -> Tensor:
        """A steered copy of hidden; scratch memory is full of NaN beforehand."""
        edited = self.hidden.clone()
        self.run_on(edited, backend, **more)
        return edited

    def run_on(self, hidden: Tensor, backend: str, **more: object) -> None:
        """backend: triton, torch (its calls alone), or native (torch with the native kernel where it can)."""
        more.setdefault("workspace", poisoned_workspace(self) if backend == "triton" else None)
        steer_(
            hidden, self.residual, self.token_row, self.probes, self.rows, self.layer,
            gain=self.gain, backend="triton" if backend == "triton" else "torch",
            use_native=backend == "native", **more,  # type: ignore[arg-type]
        )  # fmt: skip

    def truth(self) -> Tensor:
        """The edit of every token in float64, token by token in x-space."""
        edit = torch.zeros(self.hidden.shape, dtype=torch.float64)
        for token in range(self.hidden.shape[0]):
            x = self.residual_stream(token)
            edit[token] = (self._follow(token, x, []) - x)[0]
        return edit

    def records(self) -> list[Expected]:
        """What every edit with Flag.REPORT did, in the order of tokens and stages."""
        found: list[Expected] = []
        for token in range(self.hidden.shape[0]):
            self._follow(token, self.residual_stream(token), found)
        return found

    def residual_stream(self, token: int) -> Tensor:
        x = self.hidden[token].double().cpu()
        return (x if self.residual is None else x + self.residual[token].double().cpu())[None]

    def edit_of(self, token: int, stage: int = 0) -> Edit | None:
        """What a token's row does in a stage, None for nothing."""
        row = int(self.token_row[stage, token])
        return self.plans[row][stage] if 0 <= row < len(self.plans) else None

    def tokens(self, wanted: Callable[[Edit], bool] = lambda _: True) -> Tensor:
        """[T] bool: whose edit of the first stage is there and wanted."""
        edits = (self.edit_of(token) for token in range(self.hidden.shape[0]))
        return torch.tensor([edit is not None and wanted(edit) for edit in edits], device=self.hidden.device)

    def _follow(self, token: int, x: Tensor, records: list[Expected]) -> Tensor:
        is_open = False
        for stage in range(self.rows.num_stages):
            edit = self.edit_of(token, stage)
            was_open, is_open = is_open, False
            if edit is None:
                continue
            if edit.opens is not None:
                shut = Flag.GATED in edit.settings.flags and not was_open
                is_open = bool(edit.opens(x)) and not shut
                continue
            assert edit.truth is not None
            gain = 1.0 if self.gain is None else float(self.gain[stage, token])
            after, steps = edit.truth(x, gain)
            if Flag.GATED in edit.settings.flags and not was_open:
                after, steps = x, torch.zeros(1)
            if Flag.REPORT in edit.settings.flags:
                records.append(
                    Expected(
                        stage,
                        token,
                        float((after - x).norm() / x.norm()),
                        -1 if steps is None else int(steps),
                        None if edit.probe is None else probe_logits(x, edit.probe)[0],
                        None if edit.probe is None else probe_logits(after, edit.probe)[0],
                    )
                )
            x = after
        return x


def poisoned_workspace(case: Case) -> Workspace:
    probes = case.probes
    workspace = Workspace.allocate(
        case.hidden.shape[0], probes.max_width, case.hidden.device, probes.max_labels
    )
    for field in fields(workspace):
        scratch = getattr(workspace, field.name)
        scratch.fill_(float("nan") if scratch.is_floating_point() else 1)
    return workspace


def one_stage(*names: str) -> Callable[[Maker], list[Plan]]:
    """Rows of every edit of these methods, or of all methods."""
    return lambda maker: [[edit] for name in names or METHODS for edit in METHODS[name](maker)]


def make_case(
    rows: Callable[[Maker], list[Plan]] | None = None,
    *,
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    max_width: int = 40,
    num_labels: int = 4,
    max_steps: int = 8,
    num_slots: int = 20,
    with_residual: bool = True,
    with_gain: bool = False,
    seed: int = 0,
) -> Case:
    """A batch of random tokens over these rows, one row that does nothing, and no row; layer 1 of 2.

    rows: makes the edits of every row by stage; None: one stage with every method.
    with_gain: about half of the tokens have faded by some part.
    """
    generator = torch.Generator().manual_seed(seed)
    probes = ProbeTables.allocate(num_slots, max_width, num_labels + 1, hidden_size, dtype, device)
    plans = (rows or one_stage())(Maker(probes, num_labels, generator, max_steps))
    num_stages, num_rows = len(plans[0]), len(plans) + 1
    tables = RowTables.allocate(2, num_rows, max_width, num_labels + 1, device, num_stages)
    # Values that would show if anything read another layer or a row of -1.
    for table in (tables.readout, tables.scale, tables.label_weights):
        table[:num_stages] = float("nan")
    for row, plan in enumerate(plans):
        for stage, edit in enumerate(plan):
            if edit is not None:
                store(tables, LAYER * num_stages + stage, row, edit.settings)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
    residual = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
    token_row = torch.randint(-1, num_rows, (num_tokens + 3,), generator=generator, dtype=torch.int32)
    if num_tokens <= 3:
        token_row[:] = torch.arange(num_tokens + 3) % len(plans)
    token_row = token_row.repeat(num_stages, 1)
    if num_stages > 1:  # windows may leave a token out of one stage alone
        token_row[torch.rand(token_row.shape, generator=generator) < 0.1] = -1
    gain = torch.rand(token_row.shape, generator=generator).mul(2).clamp(0.05, 1) if with_gain else None
    return Case(
        hidden=hidden.to(device),
        residual=residual.to(device) if with_residual else None,
        token_row=token_row.to(device),
        gain=None if gain is None else gain.to(device),
        probes=probes,
        rows=tables,
        plans=plans,
    )


def store(rows: RowTables, entry: int, row: int, settings: RowSettings) -> None:
    """Write one row's settings into the tables."""
    for field in fields(settings):
        value, table = getattr(settings, field.name), getattr(rows, field.name)
        if isinstance(value, torch.Tensor):
            table[entry, row] = 0.0
            table[entry, row, : value.shape[0]] = value
        elif value is not None:
            table[entry, row] = value


def assert_edit_close(case: Case, edited: Tensor, truth: Tensor) -> None:
    """Compare a steered batch with the truth by the table above; prints how many tokens flipped."""
    dtype = case.hidden.dtype
    before = case.hidden.double().cpu()
    after = edited.double().cpu()
    assert torch.isfinite(after).all()
    rounding = (before + truth).abs() * ROUNDING[dtype]
    error = ((after - before - truth).abs() - rounding).clamp(min=0).norm(dim=1)
    size = truth.norm(dim=1)
    flipped = error > EDIT_TOLERANCE[dtype] * size
    allowed = max(1, int(FLIPPED_SHARE * size.numel()))
    print(f"{dtype}: {int(flipped.sum())} of {size.numel()} tokens flipped (at most {allowed})")
    assert int(flipped.sum()) <= allowed, (error / size.clamp(min=1e-30)).topk(min(5, size.numel()))
    assert (error <= FLIPPED_TOLERANCE * size).all(), (error / size.clamp(min=1e-30)).max()
    assert float(error.norm()) <= RMS_RATIO * float(size.norm())
