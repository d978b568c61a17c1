"""Fit a probe on the shipped model: `python -m tests.server.page.demo_probe FOLDER`, a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.task import labelled_text
from ksteer_vllm.fit.pipeline import fit_probe_to_rows
from ksteer_vllm.fit.plans import FitPlan

ROWS = 400
EPOCHS = 4
ALPHA = {"gradient": 0.8, "add": 0.3}
"""About what `ksteer demo` calibrates."""


def main(folder: Path) -> None:
    probe = fit_probe_to_rows(
        str(MODEL_DIR),
        labelled_text(ROWS),
        labels=TONES,
        layer=2,
        plan=FitPlan(epochs=EPOCHS, noise=1.0, width=64),
        engine_options=ENGINE_OPTIONS,
        console=Console(quiet=True),
    )
    probe.with_metadata(default_alpha=ALPHA).save(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
