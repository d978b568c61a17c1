"""The record that admission writes for a request, and that everything after it reads.

It travels with the request to the scheduler and the workers as plain JSON types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ADMISSION_KEY", "AdmittedEdit", "AdmittedRequest"]

ADMISSION_KEY = "ksteer_admission"
"""The key of a record in `SamplingParams.extra_args`. Only admission writes it; clients may not."""


@dataclass(frozen=True)
class AdmittedEdit:
    """One edit of an admitted request: what is done to a token, and to which tokens of this request.

    Args:
        edit: The canonical edit (`Edit.canonical`), every default filled in.
        fingerprint: What the edit does to a token, as a hash (`spec.fingerprint`).
        digest: The probe's, which is what workers know it by: a name can be given to another probe.
        windows: Absolute, half-open token positions: prompt start, end, generation start, end.
        condition_digest: The digest of the condition's probe; empty without a condition.
        fade: The position at which the strength begins to fall, and over how many tokens; None for no fade.
        divisor: What the strength of prompt tokens is divided by; None for no division.
    """

    edit: Mapping[str, Any]
    fingerprint: str
    digest: str
    windows: tuple[int, int, int, int]
    condition_digest: str = ""
    fade: tuple[int, int] | None = None
    divisor: int | None = None

    @property
    def steers_prompt(self) -> bool:
        """Whether its prompt window names any token."""
        return self.windows[0] < self.windows[1]

    def to_wire(self) -> dict[str, Any]:
        """As plain JSON types; fields the edit does not have are left out."""
        optional = {
            "condition_digest": self.condition_digest or None,
            "fade": None if self.fade is None else list(self.fade),
            "divisor": self.divisor,
        }
        return {
            "edit": self.edit,
            "fingerprint": self.fingerprint,
            "digest": self.digest,
            "windows": list(self.windows),
            **{name: value for name, value in optional.items() if value is not None},
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> AdmittedEdit:
        """The inverse of `to_wire`."""
        first, last, start, end = wire["windows"]
        fade = wire.get("fade")
        return cls(
            edit=wire["edit"],
            fingerprint=wire["fingerprint"],
            digest=wire["digest"],
            windows=(first, last, start, end),
            condition_digest=wire.get("condition_digest", ""),
            fade=None if fade is None else (fade[0], fade[1]),
            divisor=wire.get("divisor"),
        )


@dataclass(frozen=True)
class AdmittedRequest:
    """The steering of one request.

    Args:
        edits: In the order they are applied.
        report: Whether what is done to its tokens is recorded.
        sampled: Whether the report is for the metrics alone, and not returned.
    """

    edits: tuple[AdmittedEdit, ...]
    report: bool = False
    sampled: bool = False

    @property
    def digests(self) -> frozenset[str]:
        """The probes its edits and their conditions need."""
        needed = {edit.digest for edit in self.edits} | {edit.condition_digest for edit in self.edits}
        return frozenset(needed - {""})

    @property
    def steers_prompt(self) -> bool:
        """Whether any edit names a prompt token."""
        return any(edit.steers_prompt for edit in self.edits)

    def to_wire(self) -> dict[str, Any]:
        """As plain JSON types: {"edits": [...], "report": bool, "sampled": bool}."""
        return {
            "edits": [edit.to_wire() for edit in self.edits],
            "report": self.report,
            "sampled": self.sampled,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> AdmittedRequest:
        """The inverse of `to_wire`."""
        edits = tuple(AdmittedEdit.from_wire(edit) for edit in wire["edits"])
        return cls(edits, report=wire["report"], sampled=wire["sampled"])
