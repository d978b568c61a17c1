"""A probe of the shipped model, fitted once for all tests of a run, in a process of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.task import labelled_text
from ksteer_vllm.fit.pipeline import fit_probe_to_rows
from ksteer_vllm.fit.plans import FitPlan
from testbed.serving import START_LIMIT, child_environment
from tests.support.engines import GIB_OF_CACHE

ROWS = 400
EPOCHS = 4
ALPHA = {"gradient": 0.8, "add": 0.3}
"""About what `ksteer demo --model shipped` calibrates."""


def demo_probe(factory: pytest.TempPathFactory) -> Path:
    """The probe's folder; the first test process to ask fits it, the other waits."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "demo-probe"
    with (root / "demo-probe.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            fit = subprocess.run(
                [sys.executable, "-m", "tests.support.demo_probe", str(folder)],
                env=child_environment(GIB_OF_CACHE),
                timeout=START_LIMIT,
                capture_output=True,
                check=False,
                text=True,
            )
            assert fit.returncode == 0, fit.stdout[-3000:] + fit.stderr[-3000:]
    return folder


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
