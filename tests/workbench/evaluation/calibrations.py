"""Calibrations as a run would leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.experiments.calibration.record import CALIBRATION, CalibratedCell, Calibration
from ksteer_vllm.probes.probe import Probe

LENIENT = CoherenceRule(
    max_perplexity=1e9,
    max_repetition=1.0,
    min_length=0,
    max_length=1e9,
    may_be_cut_off=True,
    unsteered=1.0,
)


def calibration_of(
    variants: Sequence[Variant],
    strengths: Mapping[str, float | None],
    sizes: Sequence[int] = (1, 2),
    avoid: str = "rest",
    digests: Mapping[str, str] | None = None,
    max_tokens: int = 4,
) -> Calibration:
    """strengths: variant -> its best strength, half of the largest coherent one; the others are left out."""
    cells = [
        CalibratedCell(variant=name, size=size, points=(), best=alpha, largest_coherent=alpha and 2 * alpha)
        for name, alpha in strengths.items()
        for size in sizes
    ]
    named = tuple(variant for variant in variants if variant.name in strengths)
    return Calibration(
        variants=named,
        metric="judge",
        judge="probe",
        avoid=avoid,
        coherence=LENIENT,
        digests=dict(digests or {}),
        temperature=1.0,
        max_tokens=max_tokens,
        cells=tuple(cells),
    )


def digests_of(paths: Mapping[str, Path]) -> dict[str, str]:
    """Name -> digest of probe folders."""
    return {name: Probe.load_metadata(path).digest for name, path in paths.items()}


def write_calibration(folder: Path, calibration: Calibration) -> None:
    (folder / CALIBRATION).mkdir(exist_ok=True)
    text = json.dumps({"provenance": {}, **calibration.as_json()})
    (folder / CALIBRATION / "results.json").write_text(text)
