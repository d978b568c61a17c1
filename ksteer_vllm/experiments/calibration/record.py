"""What a calibration found, as it is kept in `calibration/results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.errors import UsageError, listing
from ksteer_vllm.experiments.calibration.plan import Metric, Rule

__all__ = ["CALIBRATION", "CalibratedCell", "Calibration", "Gain", "Point"]

CALIBRATION = "calibration"
"""The folder, within the suite's."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Gain(_Record):
    """Mean of a score minus that of the unsteered replies to the same prompts, with its interval.

    The bootstrap resamples prompts. Among n coherent strengths the best one is chosen, so the interval holds
    1 - 0.05 / n of the resamples (Bonferroni).
    """

    mean: float
    low: float
    high: float

    @property
    def beats_unsteered(self) -> bool:
        """Whether the whole interval is above 0: the one rule by which a strength is written."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Point(_Record):
    """One strength: means over its replies, all combinations of one size together.

    Attributes:
        alpha: The strength; 0 for unsteered replies.
        score: By the chosen metric.
        coherent: Share of coherent replies.
        on_target: Share that show every target and are coherent; None without a judge.
        propensity: Mean of the weakest target's probability under the evaluation probe; None without one.
        perplexity: Median, under the unsteered model.
        gain: Of the score over unsteered; None where it was not looked at.
    """

    alpha: float
    replies: int
    score: float
    coherent: float
    within_budget: bool
    on_target: float | None = None
    propensity: float | None = None
    perplexity: float | None = None
    gain: Gain | None = None


class CalibratedCell(_Record):
    """One variant, at combinations of one size, at one layer (None: the probe's own).

    Attributes:
        points: By strength, ascending.
        best, largest_coherent: Strengths; None if no strength tried was within the budget.
        bracketed: Whether a larger strength than largest_coherent was tried and exceeded the budget.
        by_label: Of single labels, what each gains at the best strength.
    """

    variant: str
    size: int
    layer: int | None = None
    points: tuple[Point, ...]
    best: float | None = None
    largest_coherent: float | None = None
    bracketed: bool = True
    by_label: dict[str, Gain] = {}

    def at(self, alpha: float | None) -> Point | None:
        """The point of a strength; None for None."""
        return next((point for point in self.points if point.alpha == alpha), None)

    def strength(self, rule: Rule) -> float | None:
        """The strength that the rule chooses, if its score beats that of unsteered replies."""
        alpha = self.best if rule == "best" else self.largest_coherent
        point = self.at(alpha)
        return alpha if point is not None and point.gain and point.gain.beats_unsteered else None


class Calibration(_Record):
    """Every cell, and by which rules its strengths were chosen.

    Attributes:
        digests: Digests of the probes and the evaluation probe, by name, at the time.
        temperature, max_tokens: How the replies were sampled.
        layers: Variant -> the layer chosen for it; None for the probe's own.
        unsteered: Size -> the unsteered replies to the same prompts, seen from the same targets.
    """

    variants: tuple[Variant, ...]
    metric: Metric
    judge: str | None = None
    avoid: str
    coherence: CoherenceRule
    digests: dict[str, str]
    temperature: float
    max_tokens: int
    layers: dict[str, int | None] = {}
    unsteered: dict[int, Point] = {}
    cells: tuple[CalibratedCell, ...]

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Read the calibration of a suite or a probe folder.

        Raises:
            UsageError: If there is none that can be read; the message names `ksteer calibrate`.
        """
        path = Path(folder) / CALIBRATION / "results.json"
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(
                f"{path}: {error.strerror or error}; calibrate with `ksteer calibrate {folder}` first"
            ) from None
        except (ValueError, ValidationError):
            raise UsageError(
                f"{path}: not what `ksteer calibrate` writes; delete it and run `ksteer calibrate {folder}` "
                "again"
            ) from None

    def check(self, digests: Mapping[str, str]) -> None:
        """Raise UsageError if a probe is not the one that was calibrated. digests: by name; probes
        that were not calibrated have nothing to differ from."""
        differing = [name for name in digests if self.digests.get(name, digests[name]) != digests[name]]
        if differing:
            raise UsageError(
                f"{listing(map(repr, differing))}: fitted again since the strengths were calibrated; "
                "run `ksteer calibrate` again"
            )

    def alpha(self, variant: str, size: int, *, rule: Rule = "best") -> float | None:
        """The calibrated strength, at the chosen layer; None if no strength tried was within the budget.

        Raises UsageError for a variant or a size that was not calibrated.
        """
        cell = self.cell(variant, size)
        return cell.best if rule == "best" else cell.largest_coherent

    def cell(self, variant: str, size: int) -> CalibratedCell:
        """At the chosen layer. Raises UsageError."""
        layer = self.layers.get(variant)
        for cell in self.cells:
            if (cell.variant, cell.size, cell.layer) == (variant, size, layer):
                return cell
        sizes = sorted({cell.size for cell in self.cells if cell.variant == variant})
        if not sizes:
            known = listing({cell.variant: None for cell in self.cells})
            raise UsageError(f"{variant!r} was not calibrated, only {known}; run `ksteer calibrate`")
        raise UsageError(
            f"{variant!r} was calibrated for combinations of {listing(sizes)} labels, not {size}; "
            f"run `ksteer calibrate --sizes {','.join(map(str, [*sizes, size]))}`"
        )

    def best_variant(self) -> str | None:
        """The variant with the highest score at its best strength, for the smallest combinations."""
        found = {}
        for variant in self.variants:
            cells = [
                c for c in self.cells if (c.variant, c.layer) == (variant.name, self.layer(variant.name))
            ]
            cell = min(cells, key=lambda cell: cell.size, default=None)
            point = cell.at(cell.best) if cell is not None else None
            if point is not None:
                found[variant.name] = point.score
        return max(found, key=lambda name: found[name], default=None)

    def layer(self, variant: str) -> int | None:
        """The layer the variant's strengths are for; None: the probe's own."""
        return self.layers.get(variant)

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
