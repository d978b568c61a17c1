"""Resident artifacts: their weights in device tables, and the row of an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ksteer_kernels import Flag, ProbeTables, Program, RowSettings, SlotWeights
from ksteer_vllm.artifact import Artifact
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.errors import ProbeError
from ksteer_vllm.methods import FAMILIES, load
from ksteer_vllm.methods.program import FamilyProgram, PlannedRow
from ksteer_vllm.stages import assign_stages

__all__ = ["ProbePool", "RequestRows"]

MAX_KNOWN_EDITS = 4096
"""Edits whose settings are kept for the next request that asks for the same; the oldest go first."""


@dataclass(frozen=True)
class RequestRows:
    """What a request's row holds.

    cells: (layer, stage) -> settings. windows: stage -> four absolute positions; fades: stage -> (start,
    length), length 0: none. edit_at: (layer, stage) -> index of the request's edit. divisors: stage -> what
    the strength of prompt tokens is divided by, if by anything.
    """

    cells: dict[tuple[int, int], RowSettings]
    windows: dict[int, tuple[int, ...]]
    fades: dict[int, tuple[int, int]]
    edit_at: dict[tuple[int, int], int]
    divisors: dict[int, int] = field(default_factory=dict)


class ProbePool:
    """Loads the configured artifacts into slots, once, and turns admitted specs into rows.

    A spec costs its readouts, whatever it targets: a thousand target/avoid mixes share the weights.
    """

    def __init__(
        self, config: EngineConfig, *, hidden_size: int, weight_dtype: torch.dtype, device: torch.device
    ) -> None:
        self._programs: dict[str, FamilyProgram] = {}
        self._slots: dict[tuple[str, str], int] = {}
        self._known_edits: dict[
            tuple[str, str, bool], tuple[dict[int, RowSettings], dict[int, RowSettings]]
        ] = {}
        loaded: list[SlotWeights] = []
        for name, source in config.probes.items():
            artifact = Artifact.load(source.path)
            if artifact.metadata.digest != source.digest:
                raise ProbeError(f"probe {name!r}: {source.path} has changed since the engine was configured")
            program: FamilyProgram = load(FAMILIES[artifact.metadata.family].program)(artifact)
            self._programs[name] = program
            for key, weights in program.slots().items():
                self._slots[name, key] = len(loaded)
                loaded.append(weights)
        labels = max((weights.num_labels for weights in loaded), default=1)
        self.tables = ProbeTables.allocate(
            max(len(loaded), 1), config.max_width, max(labels, 1), hidden_size, weight_dtype, device
        )
        for slot, weights in enumerate(loaded):
            self.tables.load(slot, weights)
        self.probe_of_slot = {slot: name for (name, _), slot in self._slots.items()}

    def request_rows(
        self, canonical: Mapping[str, Any], records: Sequence[Mapping[str, Any]], report: bool = False
    ) -> RequestRows:
        """The rows of an admitted request: its canonical spec, and per edit what admission recorded of it."""
        edits = canonical["edits"]
        rows = RequestRows({}, {}, {}, {})
        for index, (edit, record, stage) in enumerate(zip(edits, records, assign_stages(edits), strict=True)):
            conditions, cells = self._edit_cells(edit, record["fingerprint"], report)
            for used in (stage - 1, stage) if conditions else (stage,):
                rows.windows[used] = tuple(record["windows"])
                rows.fades[used] = tuple(record.get("fade", (0, 0)))
                if "divisor" in record:
                    rows.divisors[used] = record["divisor"]
            for layer, settings in cells.items():
                rows.cells[layer, stage] = settings
                rows.edit_at[layer, stage] = index
            for layer, settings in conditions.items():
                rows.cells[layer, stage - 1] = settings
        return rows

    def _edit_cells(
        self, edit: Mapping[str, Any], fingerprint: str, report: bool
    ) -> tuple[dict[int, RowSettings], dict[int, RowSettings]]:
        """Settings by layer of an edit's condition, if it has one, and of the edit itself.

        Requests with the same edit share them, and so do layers wherever the artifact is the same there.
        """
        key = (edit["probe"], fingerprint, report)
        known = self._known_edits.get(key)
        if known is None:
            known = self._conditions(edit), self._cells(edit, report)
            while len(self._known_edits) >= MAX_KNOWN_EDITS:
                self._known_edits.pop(next(iter(self._known_edits)))
            self._known_edits[key] = known
        return known

    def _cells(self, edit: Mapping[str, Any], report: bool) -> dict[int, RowSettings]:
        program, cells = self._programs[edit["probe"]], {}
        flags = Flag.REPORT if report else Flag(0)
        if "condition" in edit:
            flags |= Flag.GATED
        if edit.get("preserve_norm"):
            flags |= Flag.PRESERVE_NORM
        settings: RowSettings | None = None
        for layer in edit["layers"]:
            if settings is None or program.differs_by_layer(edit):
                placed = self._placed(edit["probe"], program.row_at(edit, layer))
                settings = _compact(
                    _projecting(replace(placed, flags=placed.flags | flags, cap=edit.get("cap", placed.cap)))
                )
            cells[layer] = settings
        return cells

    def _conditions(self, edit: Mapping[str, Any]) -> dict[int, RowSettings]:
        if "condition" not in edit:
            return {}
        condition = edit["condition"]
        name, cells = condition["probe"], {}
        program = self._programs[name]
        settings: RowSettings | None = None
        for layer in edit["layers"]:
            if settings is None or program.metadata.layers:
                settings = _compact(self._placed(name, program.condition_at(condition, layer)))
            cells[layer] = settings
        return cells

    def _placed(self, name: str, row: PlannedRow) -> RowSettings:
        return replace(row.settings, slot=self._slots[name, row.slot])


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
