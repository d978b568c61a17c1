"""The demo's pipeline on a few questions: what it writes, and that steering does something."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ksteer_vllm import Probe
from ksteer_vllm.data.rows import read_rows
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.plan import DemoPlan
from ksteer_vllm.demo.run import run_demo
from ksteer_vllm.demo.steering import COMBINATIONS, METHODS
from ksteer_vllm.demo.task import labelled_text

PLAN = DemoPlan(rows=400, epochs=4, calibration_questions=2, test_questions=6)


@pytest.mark.slow
def test_the_demo_on_a_few_questions(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=118)
    run_demo(tmp_path, PLAN, console=console)
    assert read_rows(tmp_path / "data.jsonl") == labelled_text(PLAN.rows, seed=PLAN.seed)
    assert (tmp_path / "model" / "config.json").exists()
    probe = Probe.load(tmp_path / "probe")
    assert probe.labels == TONES
    assert set(probe.metadata.default_alpha) == set(METHODS)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["probe_digest"] == probe.metadata.digest
    assert {
        cell["variant"]: cell["best"] for cell in results["calibration"]["cells"]
    } == probe.metadata.default_alpha
    rows = {(tuple(row["target"]), row["method"]): row for row in results["rows"]}
    assert set(rows) == {((), None)} | {(target, method) for target in COMBINATIONS for method in METHODS}
    assert all(row["replies"] == PLAN.test_questions for row in rows.values())
    steered = [rows[(tone,), "gradient"]["tone_rates"][tone] for tone in TONES]
    plain = [rows[(), None]["tone_rates"][tone] for tone in TONES]
    assert sum(steered) / len(TONES) > 0.8
    assert sum(plain) / len(TONES) < 0.5
    output = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("K-Steering", "CAA", "--plugin ksteer --ksteer-probe", "each single tone at least 0.8"):
        assert text in output
