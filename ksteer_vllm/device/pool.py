"""Resident probes: their weights in device tables, and the row of an edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ksteer_kernels import Flag, ProbeTables, Program, RowSettings, SlotWeights, check_metric
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.errors import PoolFullError, ProbeError
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.admitted import AdmittedEdit, AdmittedRequest
from ksteer_vllm.spec.families import FAMILIES, load
from ksteer_vllm.spec.stages import assign_stages

__all__ = ["ProbePool", "RequestRows"]

MAX_KNOWN_EDITS = 4096
"""Edits whose settings are kept for the next request that asks for the same; the oldest go first."""


@dataclass(frozen=True)
class RequestRows:
    """What a request's row holds.

    Attributes:
        cells: (layer, stage) -> settings.
        windows: Stage -> four absolute positions, as `RowTables.windows`.
        fades: Stage -> (start, length); length 0: none.
        edit_at: (layer, stage) -> index of the request's edit.
        divisors: Stage -> what the strength of prompt tokens is divided by, if by anything.
    """

    cells: dict[tuple[int, int], RowSettings]
    windows: dict[int, tuple[int, ...]]
    fades: dict[int, tuple[int, int]]
    edit_at: dict[tuple[int, int], int]
    divisors: dict[int, int] = field(default_factory=dict)


class ProbePool:
    """Holds probes in slots, by digest, and turns admitted specs into rows.

    A spec costs its readouts, whatever it targets: a thousand target/avoid mixes share the weights. The
    configured probes are there from the start; others are loaded and unloaded while the engine runs, in
    place, since captured CUDA graphs keep the tables' addresses.

    Args:
        config: Resolved engine options.
        hidden_size: Size d of the residual stream.
        weight_dtype: Of the slots' basis; everything else is float32.
        device: Where the model runs.

    Raises:
        ProbeError: A configured probe's folder cannot be read or has changed, or the tables are too small.
    """

    def __init__(
        self, config: ResolvedConfig, *, hidden_size: int, weight_dtype: torch.dtype, device: torch.device
    ) -> None:
        self._programs: dict[str, FamilyProgram] = {}
        self._slots: dict[tuple[str, str], int] = {}
        self._known_edits: dict[
            tuple[str, str, str, bool], tuple[dict[int, RowSettings], dict[int, RowSettings]]
        ] = {}
        self.digest_of_slot: dict[int, str] = {}
        programs = {}
        for name, source in config.probes.items():
            try:
                programs[source.digest] = _program(source.path, source.digest)
            except ProbeError as error:
                raise ProbeError(f"probe {name!r}: {error}") from None
        slots = {digest: program.slots() for digest, program in programs.items()}
        num_slots, max_labels = _capacity(config, [w for own in slots.values() for w in own.values()])
        self.tables = ProbeTables.allocate(
            num_slots, config.max_width, max_labels, hidden_size, weight_dtype, device
        )
        for digest, program in programs.items():
            self._place(digest, program, slots[digest])

    @property
    def digests(self) -> tuple[str, ...]:
        """The resident probes."""
        return tuple(self._programs)

    @property
    def num_free(self) -> int:
        """Empty slots."""
        return self.tables.num_slots - len(self._slots)

    def load(self, path: str, digest: str) -> None:
        """Read a probe into free slots; one that is resident already stays as it is.

        Args:
            path: Its folder.
            digest: What the folder must hold.

        Raises:
            ProbeError: It is damaged, has another digest, or is too wide. Nothing has changed.
            PoolFullError: Too few slots are free. Nothing has changed.
        """
        if digest in self._programs:
            return
        program = _program(path, digest)
        slots = program.slots()
        needed = _num_slots(slots.values())
        if needed > self.num_free:
            raise PoolFullError(f"needs {needed} slots; {self.num_free} of {self.tables.num_slots} are free")
        self._place(digest, program, slots)

    def unload(self, digest: str) -> None:
        """Free a probe's slots. No running request may need it; one that is not resident is no error."""
        if self._programs.pop(digest, None) is None:
            return
        for place, slot in list(self._slots.items()):
            if place[0] == digest:
                del self._slots[place], self.digest_of_slot[slot]
                self.tables.clear(slot)
        for key in [key for key in self._known_edits if digest in key[1:3]]:
            del self._known_edits[key]

    def _place(self, digest: str, program: FamilyProgram, slots: Mapping[str, SlotWeights]) -> None:
        free = (slot for slot in range(self.tables.num_slots) if slot not in self.digest_of_slot)
        placed: dict[str, int] = {}
        try:
            for key, weights in slots.items():
                placed[key] = next(free)
                if weights.up is not None:
                    placed[f"{key}/up"] = next(free)
                self.tables.load(placed[key], weights, placed.get(f"{key}/up"))
        except BaseException as error:
            for slot in placed.values():
                self.tables.clear(slot)
            if isinstance(error, ValueError):
                raise ProbeError(str(error)) from None
            raise
        self._programs[digest] = program
        self._slots.update({(digest, key): slot for key, slot in placed.items()})
        self.digest_of_slot.update(dict.fromkeys(placed.values(), digest))

    def request_rows(self, admitted: AdmittedRequest) -> RequestRows:
        """The rows of an admitted request."""
        stages = assign_stages([edit.edit for edit in admitted.edits])
        rows = RequestRows({}, {}, {}, {})
        for index, (edit, stage) in enumerate(zip(admitted.edits, stages, strict=True)):
            conditions, cells = self._edit_cells(edit, admitted.report)
            for used in (stage - 1, stage) if conditions else (stage,):
                rows.windows[used] = edit.windows
                rows.fades[used] = edit.fade or (0, 0)
                if edit.divisor is not None:
                    rows.divisors[used] = edit.divisor
            for layer, settings in cells.items():
                rows.cells[layer, stage] = settings
                rows.edit_at[layer, stage] = index
            for layer, settings in conditions.items():
                rows.cells[layer, stage - 1] = settings
        return rows

    def _edit_cells(
        self, admitted: AdmittedEdit, report: bool
    ) -> tuple[dict[int, RowSettings], dict[int, RowSettings]]:
        """Settings by layer of an edit's condition, if it has one, and of the edit itself.

        Requests with the same edit share them, and so do layers wherever the probe is the same there.
        """
        edit, digest, condition_digest = admitted.edit, admitted.digest, admitted.condition_digest
        key = (admitted.fingerprint, digest, condition_digest, report)
        known = self._known_edits.get(key)
        if known is None:
            known = self._conditions(edit, condition_digest), self._cells(edit, digest, report)
            while len(self._known_edits) >= MAX_KNOWN_EDITS:
                self._known_edits.pop(next(iter(self._known_edits)))
            self._known_edits[key] = known
        return known

    def _cells(self, edit: Mapping[str, Any], digest: str, report: bool) -> dict[int, RowSettings]:
        program, cells = self._programs[digest], {}
        flags = Flag.REPORT if report else Flag(0)
        if "condition" in edit:
            flags |= Flag.GATED
        if edit.get("preserve_norm"):
            flags |= Flag.PRESERVE_NORM
        settings: RowSettings | None = None
        for layer in edit["layers"]:
            if settings is None or program.differs_by_layer(edit):
                placed = self._placed(digest, program.row_at(edit, layer))
                settings = _compact(
                    _projecting(replace(placed, flags=placed.flags | flags, cap=edit.get("cap", placed.cap)))
                )
                check_metric(settings, self.tables)
            cells[layer] = settings
        return cells

    def _conditions(self, edit: Mapping[str, Any], digest: str) -> dict[int, RowSettings]:
        if "condition" not in edit:
            return {}
        condition = edit["condition"]
        program, cells = self._programs[digest], {}
        settings: RowSettings | None = None
        for layer in edit["layers"]:
            if settings is None or program.metadata.layers:
                settings = _compact(self._placed(digest, program.condition_at(condition, layer)))
            cells[layer] = settings
        return cells

    def _placed(self, digest: str, row: PlannedRow) -> RowSettings:
        return replace(row.settings, slot=self._slots[digest, row.slot])


SPARE_LABELS = 64
"""Labels a probe loaded while serving may have, unless `max_labels` says otherwise."""
SPARE_SLOTS = 6
"""Slots kept free for each of max_probes probes, unless `max_slots` says otherwise. An MLP probe takes
three, others one; the variance as a metric is one more and a covariance two. Each for every layer that has
tensors of its own."""


def _program(path: str, digest: str) -> FamilyProgram:
    probe = Probe.load(path)
    if probe.metadata.digest != digest:
        raise ProbeError(f"{path} has changed since the engine was configured")
    program: FamilyProgram = load(FAMILIES[probe.metadata.family].program)(probe)
    return program


def _num_slots(weights: Iterable[SlotWeights]) -> int:
    return sum(each.num_slots for each in weights)


def _capacity(config: ResolvedConfig, configured: Sequence[SlotWeights]) -> tuple[int, int]:
    """(slots, labels) of the tables."""
    needed, labels = _num_slots(configured), max((weights.num_labels for weights in configured), default=1)
    if needed > config.max_slots > 0 or labels > config.max_labels > 0:
        raise ProbeError(
            f"the configured probes need {needed} slots and {labels} labels; the engine has "
            f"max_slots={config.max_slots or needed} and max_labels={config.max_labels or labels}"
        )
    live = bool(config.probe_dirs)
    return (
        config.max_slots or max(needed + (SPARE_SLOTS * config.max_probes if live else 0), 1),
        config.max_labels or max(labels, SPARE_LABELS if live else 1, 1),
    )


def _projecting(settings: RowSettings) -> RowSettings:
    """ADD never looks at x; with a cap, norm preservation or a report the same edit is an AFFINE one."""
    needs_x = settings.flags & (Flag.PRESERVE_NORM | Flag.REPORT) or settings.cap != float("inf")
    if settings.program != Program.ADD or not needs_x or settings.readout is None:
        return settings
    readout = -settings.strength * settings.readout
    return replace(settings, program=Program.AFFINE, strength=float(settings.strength != 0), readout=readout)


def _compact(settings: RowSettings) -> RowSettings:
    """With vectors in the tables' own float32."""
    vectors = {name: getattr(settings, name) for name in ("readout", "scale", "label_weights")}
    return replace(settings, **{name: v.float() for name, v in vectors.items() if v is not None})
