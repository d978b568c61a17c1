"""Batches to steer, the truth about them, and the one table of tolerances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ksteer_kernels import ProbeTables, Program, RowTables, Workspace, steer_
from ksteer_kernels.steer import naive
from ksteer_kernels.steer.naive import ProbeWeights

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


@dataclass
class Setting:
    """What one row does at the case's layer; c is over the labels of its probe."""

    slot: int
    program: Program
    num_steps: int
    strength: float
    decay: float
    label_weights: Tensor


@dataclass
class Case:
    """One batch with everything that `steer_` takes, and what is needed to work out the truth."""

    hidden: Tensor
    residual: Tensor | None
    token_row: Tensor
    probes: ProbeTables
    rows: RowTables
    layer: int
    weights: dict[int, ProbeWeights]
    settings: dict[int, Setting]

    def run(self, backend: str, *, poison: bool = True) -> Tensor:
        """A steered copy of hidden; scratch memory is full of NaN beforehand."""
        edited = self.hidden.clone()
        workspace = None
        if backend == "triton":
            workspace = poisoned_workspace(self, poison)
        steer_(
            edited, self.residual, self.token_row, self.probes, self.rows, self.layer,
            workspace=workspace, backend=backend,
        )  # fmt: skip
        return edited

    def truth(self) -> Tensor:
        """The edit of every token in float64, token by token in x-space."""
        edit = torch.zeros(self.hidden.shape, dtype=torch.float64)
        for t in range(self.hidden.shape[0]):
            setting = self.settings.get(int(self.token_row[t]))
            if setting is None:
                continue
            x = self.hidden[t].double().cpu()
            if self.residual is not None:
                x = x + self.residual[t].double().cpu()
            edit[t] = self._truth_of(setting, x[None]) - x
        return edit

    def _truth_of(self, setting: Setting, x: Tensor) -> Tensor:
        probe, c = self.weights[setting.slot], setting.label_weights.double()
        if setting.program == Program.ADD:
            vectors = self.probes.vectors[setting.slot, : c.shape[0]].double().cpu()
            return naive.add(x, vectors, c, alpha=setting.strength)[0]
        if setting.program == Program.REFLECT:
            return naive.reflect(x, probe, c, factor=setting.strength)[0]
        return naive.gradient_steps(
            x, probe, c, alpha=setting.strength, num_steps=setting.num_steps, step_decay=setting.decay
        )[0]


def poisoned_workspace(case: Case, poison: bool = True) -> Workspace:
    width = max(case.probes.max_width, case.probes.max_labels)
    workspace = Workspace.allocate(case.hidden.shape[0], width, case.hidden.device)
    if poison:
        for name in ("partial", "pre_activation", "upper", "step", "coefficients"):
            getattr(workspace, name).fill_(float("nan"))
    return workspace


def make_probe(
    h1: int, h2: int, num_labels: int, hidden_size: int, generator: torch.Generator
) -> ProbeWeights:
    """A random probe of ordinary scale in float32."""

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    return ProbeWeights(
        w1=normal(h1, hidden_size, scale=hidden_size**-0.5),
        b1=normal(h1, scale=0.3),
        w2=normal(h2, h1, scale=(2 / h1) ** 0.5),
        b2=normal(h2, scale=0.3),
        w3=normal(num_labels, h2, scale=h2**-0.5),
        b3=normal(num_labels, scale=0.3),
    )


def double(probe: ProbeWeights) -> ProbeWeights:
    return ProbeWeights(*(getattr(probe, name).double() for name in ("w1", "b1", "w2", "b2", "w3", "b3")))


def make_case(
    *,
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    programs: tuple[Program, ...] = tuple(Program),
    widths: tuple[tuple[int, int], ...] = ((24, 17), (40, 40)),
    max_width: int = 40,
    num_labels: int = 4,
    max_steps: int = 8,
    with_residual: bool = True,
    seed: int = 0,
) -> Case:
    """Rows of every program on every slot, mixed steps and decays, some tokens unsteered; layer 1 of 2."""
    generator = torch.Generator().manual_seed(seed)
    probes = ProbeTables.allocate(len(widths) + 1, max_width, num_labels + 1, hidden_size, dtype, device)
    num_rows = 2 * len(programs) * len(widths) + 1
    rows = RowTables.allocate(2, num_rows, max_width, num_labels + 1, device)
    # Values that would show if anything read another layer or a row of -1.
    rows.readout[0] = float("nan")
    weights: dict[int, ProbeWeights] = {}
    settings: dict[int, Setting] = {}
    for slot, (h1, h2) in enumerate(widths, start=1):
        probe = make_probe(h1, h2, num_labels, hidden_size, generator)
        vectors = torch.randn(num_labels, hidden_size, generator=generator)
        probes.load(slot, w1=probe.w1, b1=probe.b1, w2=probe.w2, b2=probe.b2, vectors=vectors)
        stored = ProbeWeights(probes.w1[slot, :h1].cpu(), probe.b1, probe.w2, probe.b2, probe.w3, probe.b3)
        weights[slot] = double(stored)
    for row in range(num_rows - 1):
        slot, program = row % len(widths) + 1, programs[row // len(widths) % len(programs)]
        c = torch.zeros(num_labels)
        c[row % num_labels] = 1.0
        if program != Program.REFLECT and num_labels > 1:
            c[(row + 1) % num_labels] = -1.0
        steps = max(1, max_steps - row) if row % 2 else max_steps
        strength = 0.7 if program == Program.GRADIENT else float(1 + row % 2)
        settings[row] = Setting(slot, program, steps, strength, 0.9 if row % 3 else 1.0, c)
        store(rows, 1, row, settings[row], weights[slot])
    hidden = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
    residual = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
    token_row = torch.randint(-1, num_rows, (num_tokens + 3,), generator=generator, dtype=torch.int32)
    return Case(
        hidden=hidden.to(device),
        residual=residual.to(device) if with_residual else None,
        token_row=token_row.to(device),
        probes=probes,
        rows=rows,
        layer=1,
        weights=weights,
        settings=settings,
    )


def store(rows: RowTables, layer: int, row: int, setting: Setting, probe: ProbeWeights) -> None:
    """Write one row's setting into the tables."""
    rows.slot[layer, row] = setting.slot
    rows.program[layer, row] = int(setting.program)
    rows.num_steps[layer, row] = setting.num_steps
    rows.strength[layer, row] = setting.strength
    rows.decay[layer, row] = setting.decay
    rows.readout[layer, row] = 0.0
    if setting.program == Program.ADD:
        readout = setting.label_weights.float()
    else:
        readout = (probe.w3.T @ setting.label_weights.double()).float()
    rows.readout[layer, row, : readout.shape[0]] = readout


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
